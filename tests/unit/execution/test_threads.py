"""How many threads torch uses: so many inside a context, and one at the start where one is clearly faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest
import torch

from pdtrim_core.api import BlockModel
from pdtrim_core.execution.threads import CLEARLY_FASTER, fitting_threads, threads
from pdtrim_core.testing import tiny_llama


@pytest.fixture(autouse=True)
def usual() -> Iterator[int]:
    """Let torch use three threads, and put its number back."""
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield 3
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, None])
def test_so_many_threads_are_used_inside_and_the_number_from_before_comes_back(count: int | None, usual: int) -> None:
    with threads(count):
        assert torch.get_num_threads() == (count or usual)
        with threads(4):
            assert torch.get_num_threads() == 4
        assert torch.get_num_threads() == (count or usual)
    assert torch.get_num_threads() == usual


def test_the_number_comes_back_after_a_failure(usual: int) -> None:
    with pytest.raises(ZeroDivisionError), threads(1):
        raise ZeroDivisionError
    assert torch.get_num_threads() == usual


class Clock:
    """A clock by which a block takes so long with one thread, and a second with more."""

    def __init__(self, with_one: float) -> None:
        self._with_one = with_one
        self._now = 0.0
        self.asked = 0

    def __call__(self) -> float:
        self.asked += 1
        self._now += self._with_one if torch.get_num_threads() == 1 else 1.0
        return self._now


@pytest.mark.parametrize("batch_tokens", [None, 1, 64])
@pytest.mark.parametrize(
    ("with_one", "expected"), [(0.1, 1), (CLEARLY_FASTER - 0.01, 1), (CLEARLY_FASTER + 0.01, 3), (1.0, 3), (5.0, 3)]
)
def test_one_thread_is_taken_where_it_is_clearly_faster(
    with_one: float, expected: int, batch_tokens: int | None, usual: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clock = tiny_llama(), Clock(with_one)
    monkeypatch.setattr(time, "perf_counter", clock)
    assert fitting_threads(model, batch_tokens) == expected
    assert clock.asked == 4
    assert torch.get_num_threads() == usual


def test_nothing_is_timed_where_there_is_one_thread_or_another_device(usual: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, clock = tiny_llama(), Clock(0.1)
    monkeypatch.setattr(time, "perf_counter", clock)
    elsewhere = cast("BlockModel", SimpleNamespace(device=torch.device("meta")))
    assert fitting_threads(elsewhere, None) == usual
    torch.set_num_threads(1)
    assert fitting_threads(model, None) == 1
    assert clock.asked == 0
