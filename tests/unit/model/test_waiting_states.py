"""Hidden states that wait for their next block: on their device, in main memory, or in a file."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
import torch

from pdtrim_core.api import PdtrimError
from pdtrim_core.model import waiting_states
from pdtrim_core.model.waiting_states import WaitingStates

HOST = torch.device("cpu")
OF_ONE = 2 * 3 * 4 * 4


def open_files() -> int:
    """How many files this process has open, where the system tells."""
    told = Path("/proc/self/fd")
    return len([*told.iterdir()]) if told.exists() else 0


def with_room(monkeypatch: pytest.MonkeyPatch, size: int) -> WaitingStates:
    monkeypatch.setattr(waiting_states, "free_memory", lambda _place: 2 * size)
    return WaitingStates(HOST)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_states_in_a_file_are_the_same(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    states_BTD = torch.randn(3, 2, 4, dtype=dtype).transpose(0, 1)
    found = with_room(monkeypatch, 0).put(states_BTD)
    assert found.data_ptr() != states_BTD.data_ptr()
    assert found.dtype == dtype
    assert torch.equal(found, states_BTD)


def test_states_stay_where_they_are_while_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, (one, other, third) = with_room(monkeypatch, 2 * OF_ONE), torch.randn(3, 2, 3, 4).unbind()
    one, other, third = one.clone(), other.clone(), third.clone()
    assert waiting.put(one) is one
    assert waiting.put(other) is other
    assert waiting.put(third) is not third
    part = one[1]
    del one
    assert waiting.put(third) is not third, "a view of the first is left"
    del part
    assert waiting.put(third) is third


def test_what_is_put_again_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting, states_BTD = with_room(monkeypatch, 2 * OF_ONE), torch.randn(2, 3, 4)
    for _ in range(5):
        assert waiting.put(states_BTD) is states_BTD
    other = torch.randn(2, 3, 4)
    assert waiting.put(other) is other


def test_states_that_learn_stay_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    states_BTD = torch.randn(2, 3, 4, requires_grad=True)
    assert with_room(monkeypatch, 0).put(states_BTD) is states_BTD


def test_files_have_no_name_and_go_with_the_states(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    waiting = with_room(monkeypatch, 0)
    before = open_files()
    found = [waiting.put(torch.randn(2, 3, 4)) for _ in range(50)]
    assert not any(tmp_path.iterdir())
    assert open_files() <= before
    assert torch.isfinite(torch.stack(found)).all()


def test_a_full_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(PdtrimError) as caught:
        with_room(monkeypatch, 0).put(torch.randn(2, 3, 4))
    assert str(caught.value) == (
        f"hidden states of 96 bytes find no room in memory, and none in {tmp_path} (No space left on device): make room there, "
        "set TMPDIR to a folder that has some, or take fewer calibration.samples"
    )
