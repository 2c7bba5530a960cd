"""Measuring: early stops that are exact, going on from them, and a device that runs out of memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import pytest
import torch

from pdtrim_core.api import Drop, Item, Objective, PdtrimError, Plan, PluginError, Removal, Staged
from pdtrim_core.data.readings import Reading
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.threads import fitting_threads, threads
from pdtrim_core.pipeline.objective_value import Measurement, ObjectiveOnItems
from pdtrim_core.testing import tiny_llama
from tests.unit.execution.test_staged_model import some_items

PLAN = Plan.unified(Removal([Drop(1)]))


class Share(Objective):
    """The share of items that a list of names calls right."""

    name = "share"
    best_item: ClassVar[float | None] = 1.0
    right: tuple[str, ...] = ()
    asked: ClassVar[list[str]] = []

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        self.asked.extend(item.name for item in items)
        return [float(item.name in self.right) for item in items]

    def score(self, mean: float) -> float:
        return 100 * mean


@pytest.fixture
def items() -> list[Item]:
    Share.asked.clear()
    return some_items()


def measurement(items: Sequence[Item], objective: Objective, *, early_stop: bool = True, batch_tokens: int = 1) -> Measurement:
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=batch_tokens))
    on_items = ObjectiveOnItems(objective, items, "objective 'share'")
    return Measurement(lambda: prefix_cache, on_items, error=0.0 if early_stop else None)


def test_measuring_stops_once_the_floor_is_out_of_reach(items: list[Item]) -> None:
    reading = measurement(items, Share(right=()))(PLAN, 80.0, None)
    # Seven items: after two wrong ones at most 5 of 7 can be right, which is 71.4.
    assert Share.asked == [name for name in Share.asked if name][:2]
    assert (reading.score, round(reading.ceiling, 1)) == (None, 71.4)


def test_a_floor_that_is_reached_gives_the_exact_value(items: list[Item]) -> None:
    reading = measurement(items, Share(right=tuple(item.name for item in items[:5])))(PLAN, 71.4, None)
    assert reading.score == pytest.approx(500 / 7)
    assert reading.items == (1.0,) * 5 + (0.0,) * 2


def test_a_lower_floor_goes_on_where_measuring_stopped(items: list[Item]) -> None:
    measure = measurement(items, Share(right=()))
    cut = measure(PLAN, 80.0, None)
    before = list(Share.asked)
    whole = measure(PLAN, None, cut)
    assert whole.score == 0.0
    assert len(Share.asked) == len(set(Share.asked)) == len(items)
    assert Share.asked[: len(before)] == before


def test_with_early_stop_off_every_item_is_measured(items: list[Item]) -> None:
    reading = measurement(items, Share(right=()), early_stop=False)(PLAN, 80.0, None)
    assert reading.score == 0.0
    assert len(Share.asked) == len(items)


class Unbounded(Share):
    """An objective without a best value: nothing can be said before the end."""

    name = "unbounded"
    best_item: ClassVar[float | None] = None


def test_an_objective_without_a_best_value_is_measured_to_the_end(items: list[Item]) -> None:
    assert measurement(items, Unbounded())(PLAN, 99.0, None).score == 0.0


class Wrong(Share):
    """An objective that answers nonsense."""

    name = "wrong"
    answer: tuple[float, ...] = (float(1),)
    scale: float = 100.0

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        return self.answer

    def score(self, mean: float) -> float:
        return self.scale * mean


@pytest.mark.parametrize(
    ("answer", "scale", "message"),
    [
        ((1.0, 1.0), 100.0, "objective 'share' gave 2 values for 1 items"),
        ((-1.0,), 100.0, "objective 'share' gave a score of -100.0 for a mean of -1.0: scores go from 0 to 100"),
        ((1.0,), 300.0, "objective 'share' gave a score of 300.0 for a mean of 1.0: scores go from 0 to 100"),
    ],
)
def test_an_objective_that_answers_nonsense_is_named(
    items: list[Item], answer: tuple[float, ...], scale: float, message: str
) -> None:
    with pytest.raises(PluginError) as caught:
        measurement(items, Wrong(answer=answer, scale=scale))(PLAN, None, None)
    assert str(caught.value) == message


def test_a_value_that_is_not_finite_is_named(items: list[Item]) -> None:
    objective = Wrong.model_construct(answer=(float("nan"),))
    with pytest.raises(PluginError) as caught:
        measurement(items, objective)(PLAN, None, None)
    assert str(caught.value) == "objective 'share' gave a value that is not finite on the plan prefill {1}, decode {1}"


class Hungry(Share):
    """An objective that runs out of memory on more than one item at once."""

    name = "hungry"

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        if len(items) > 1:
            raise torch.OutOfMemoryError("no memory")
        return super().item_values(staged, items)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on(items: list[Item]) -> None:
    notes: list[str] = []
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=128))
    objective = ObjectiveOnItems(Hungry(), items, "objective 'hungry'")
    measure = Measurement(lambda: prefix_cache, objective, note=notes.append)
    assert measure(PLAN, None, None).score == 0.0
    assert notes
    assert notes[0] == "out of memory on the device: going on with batches of 64 tokens"


class Starving(Hungry):
    """An objective that runs out of memory whatever it is given."""

    name = "starving"

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        raise torch.OutOfMemoryError("no memory")


def test_no_memory_for_the_smallest_batch_is_an_error(items: list[Item]) -> None:
    with pytest.raises(PdtrimError) as caught:
        measurement(items, Starving(), batch_tokens=4)(PLAN, None, None)
    assert str(caught.value) == "the device has no memory left, even for the smallest batch"


def test_a_reading_has_a_value_for_each_item_in_the_order_of_the_items(items: list[Item]) -> None:
    for batch_tokens in (1, 64, 4096):
        reading = measurement(items, Share(right=(items[2].name,)), batch_tokens=batch_tokens)(PLAN, None, None)
        assert reading.items == (0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0)
        assert isinstance(reading, Reading)


def test_threads_are_put_back() -> None:
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
        assert fitting_threads(tiny_llama(), 64) in (1, before + 1)
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
