"""Measuring: early stops that are exact, going on from them, and a device that runs out of memory."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import count
from random import Random
from typing import ClassVar

import pytest
import torch

from pdtrim_core.api import Drop, Item, Objective, PdtrimError, Plan, PluginError, Removal, Staged
from pdtrim_core.data.readings import Reading, Underway
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.threads import fitting_threads, threads
from pdtrim_core.pipeline import objective_value
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement, in_rounds
from pdtrim_core.search.stopping import WHOLE, Stop
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


# Several plans side by side, and giving up by likelihood


class PerPlan(Objective):
    """Values that a table gives for a plan and an item's number; notes what it was asked for."""

    name = "per-plan"
    best_item: ClassVar[float | None] = 1.0
    values: ClassVar[dict[Plan, list[float]]] = {}
    asked: ClassVar[list[tuple[Plan, str]]] = []

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        assert isinstance(staged, StagedModel)
        self.asked.extend((staged.plan, item.name) for item in items)
        return [self.values[staged.plan][int(item.name)] for item in items]

    def score(self, mean: float) -> float:
        return 100 * min(1.0, max(0.0, mean))


def many_items(count: int) -> list[Item]:
    return [Item(((1, 2, 3),), ((4, 5),), 0, (1,), str(number)) for number in range(count)]


def plans_worth(*means: float, count: int = 64, spread: float = 0.1) -> dict[Plan, list[float]]:
    """Return plans whose items are worth some mean, with the same luck of an item for all of them and a little of its own."""
    luck = Random(0)
    shared = [luck.uniform(-0.3, 0.3) for _ in range(count)]
    return {
        Plan.unified(Removal([Drop(block)])): [mean + s + luck.uniform(-spread, spread) for s in shared]
        for block, mean in enumerate(means)
    }


def together(values: dict[Plan, list[float]], stop: Stop, *, error: float | None = 0.05) -> dict[Plan, Reading]:
    """Measure all plans of a table together."""
    PerPlan.values, PerPlan.asked = values, []
    items = many_items(len(next(iter(values.values()))))
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=16))
    measure = Measurement(lambda: prefix_cache, ObjectiveOnItems(PerPlan(), items, "objective 'per-plan'"), error=error)
    return dict(measure.together(list(values), stop, {}))


def asked_of(plan: Plan) -> int:
    return sum(of == plan for of, _ in PerPlan.asked)


def test_of_several_plans_those_that_are_surely_not_the_best_are_given_up() -> None:
    values = plans_worth(0.6, 0.3, 0.62, 0.2)
    readings = together(values, Stop(keep=1))
    best, bad, close, worst = (readings[plan] for plan in values)
    assert close.score is not None
    assert bad.score is None
    assert worst.score is None
    first, second, third, fourth = values
    assert asked_of(worst_plan := fourth) == asked_of(second) == 16
    assert asked_of(third) == 64
    assert asked_of(first) > 16
    assert worst.items.count(None) == 48
    # Only that it is worse than others is known, so on the items left it may still have any score.
    assert worst.ceiling == pytest.approx(
        100 * (math.fsum(value for value in worst.items if value is not None) + 48) / 64, abs=1e-3
    )
    assert best.score is None or best.score <= close.score
    assert worst_plan != third


@pytest.mark.parametrize("keep", [2, 3, 4, 9])
def test_as_many_as_are_wanted_are_measured_whole(keep: int) -> None:
    readings = together(plans_worth(0.6, 0.3, 0.5, 0.2), Stop(keep=keep))
    assert sum(reading.score is not None for reading in readings.values()) >= min(keep, 4)


def test_a_plan_is_given_up_once_it_is_surely_below_the_floor_that_another_made() -> None:
    values = plans_worth(0.6, 0.4)
    current, candidate = values
    than = together({current: values[current]}, Stop())[current]
    assert than.score is not None
    readings = together({candidate: values[candidate]}, Stop(than.score - 5, than))
    assert readings[candidate].score is None
    assert asked_of(candidate) == 16
    # A floor far below is reached.
    assert together({candidate: values[candidate]}, Stop(than.score - 40, than))[candidate].score is not None


@pytest.mark.parametrize("error", [0.0, None])
def test_without_an_error_nothing_is_decided_by_likelihood(error: float | None) -> None:
    values = plans_worth(0.6, 0.1)
    current, candidate = values
    than = together({current: values[current]}, Stop(), error=error)[current]
    assert all(reading.score is not None for reading in together(values, Stop(keep=1), error=error).values())
    readings = together({candidate: values[candidate]}, Stop(30.0, than), error=error)
    assert (readings[candidate].score is None) == (error == 0.0)
    if error == 0.0:  # the exact stop: even with the best for all items left it would be below
        assert readings[candidate].ceiling < 30.0


@pytest.mark.parametrize("keep", [1, 2])
def test_of_several_plans_those_that_certainly_are_not_the_best_are_given_up(keep: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = plans_worth(0.6, 0.7, 0.35, 0.3, 0.4, 0.65)
    monkeypatch.setattr(objective_value, "SIDE_BY_SIDE", 2)
    whole = together(values, Stop(), error=None)
    asked = len(PerPlan.asked)
    readings = together(values, Stop(keep=keep), error=0.0)
    ranked = sorted(values, key=lambda plan: whole[plan].score or 0.0, reverse=True)
    for plan in ranked[:keep]:
        assert readings[plan] == whole[plan]
    least = whole[ranked[keep - 1]].score
    assert least is not None
    for plan in ranked[keep:]:
        assert readings[plan].score is not None or readings[plan].ceiling < least
    assert len(PerPlan.asked) < 0.8 * asked


def test_one_that_is_as_good_as_the_best_is_measured_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objective_value, "SIDE_BY_SIDE", 1)
    first, second = plans_worth(0.6, 0.5)
    # 19 of 30, which no four digits hold; all that the second lacks, it lacks at the end.
    values = {first: [float(n >= 11) for n in range(30)], second: [float(n < 19) for n in range(30)]}
    found = together(values, Stop(keep=1), error=0.0)
    assert found[first].score == found[second].score == pytest.approx(100 * 19 / 30)


def test_items_on_which_another_plan_falls_short_come_first() -> None:
    values = plans_worth(0.6, 0.5)
    current, candidate = values
    than = together({current: values[current]}, Stop(), error=0.0)[current]
    groups = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=16)).groups(many_items(64))
    groups.sort(key=lambda group: sum(1.0 - values[current][int(item.name)] for item in group), reverse=True)
    together({candidate: values[candidate]}, Stop(0.0, than), error=0.0)
    assert [name for _, name in PerPlan.asked] == [item.name for group in groups for item in group]


def test_values_are_the_same_however_plans_are_measured() -> None:
    items = some_items()
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64))
    plans = [Plan.unified(Removal([Drop(block)])) for block in range(5)]
    one, several = (
        Measurement(lambda: prefix_cache, ObjectiveOnItems(Share(right=("x",)), items, "x"), error=error) for error in (0.0, 0.05)
    )
    assert dict(several.together(plans, Stop(), {})) == {plan: one(plan, None, None) for plan in plans}


@pytest.mark.parametrize("stop", [Stop(), Stop(keep=1)], ids=["whole", "the best"])
def test_an_interrupted_measurement_gives_what_it_has(stop: Stop) -> None:
    values = plans_worth(0.6, 0.5)
    PerPlan.values, PerPlan.asked = values, []

    class Stops(PerPlan):
        def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
            if len(self.asked) >= 40:
                raise KeyboardInterrupt
            return super().item_values(staged, items)

    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=16))
    measure = Measurement(lambda: prefix_cache, ObjectiveOnItems(Stops(), many_items(64), "objective 'per-plan'"))
    readings: dict[Plan, Reading] = {}
    with pytest.raises(KeyboardInterrupt):
        consume(measure.together(list(values), stop, {}), readings)
    assert set(readings) == set(values)
    assert all(0 < 64 - reading.items.count(None) < 64 for reading in readings.values())
    whole = dict(measurement_of(values).together(list(values), Stop(), readings))
    assert whole == dict(measurement_of(values).together(list(values), Stop(), {}))
    assert len(PerPlan.asked) < 3 * 2 * 64


@pytest.mark.parametrize("stop", [Stop(), Stop(keep=1)], ids=["whole", "the best"])
def test_plans_that_are_measured_together_are_kept_now_and_then(stop: Stop, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch of one plan takes four seconds, so that after three of them what has grown is kept."""
    values = plans_worth(0.6, 0.5, 0.4)
    whole = dict(measurement_of(values).together(list(values), stop, {}))
    now = count(step=4.0)
    monkeypatch.setattr(objective_value, "monotonic", lambda: next(now))
    PerPlan.asked = []
    underway: dict[Plan, Reading] = {}
    killed = measurement_of(values).together(list(values), stop, {})
    for plan, reading in killed:
        if not isinstance(reading, Underway):
            break
        if plan in underway:
            assert reading.items.count(None) < underway[plan].items.count(None)
        underway[plan] = reading
    assert set(underway) == set(values)
    assert all(reading.score is None and reading.items.count(None) < 64 for reading in underway.values())
    # Who goes on from there finds the same and measures no item that is there again.
    monkeypatch.undo()
    PerPlan.asked = []
    left = sum(reading.items.count(None) for reading in underway.values())
    found = dict(measurement_of(values).together(list(values), stop, underway))
    assert found == whole
    assert len(PerPlan.asked) <= left < 3 * 64


def test_a_plan_alone_is_measured_to_its_end_though_it_is_kept_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    values = plans_worth(0.6)
    now = count(step=20.0)
    monkeypatch.setattr(objective_value, "monotonic", lambda: next(now))
    (plan,) = values
    assert measurement_of(values)(plan, None, None).score is not None


def test_plans_side_by_side_tell_how_far_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    now = count(step=1.0)
    monkeypatch.setattr(objective_value, "monotonic", lambda: next(now))
    heard: list[tuple[int, float]] = []
    PerPlan.values = plans_worth(0.6, 0.5)
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=16))
    on_items = ObjectiveOnItems(PerPlan(), many_items(64), "objective 'per-plan'")
    measure = Measurement(lambda: prefix_cache, on_items, advanced=lambda *what: heard.append(what))
    assert len([one for _, one in measure.together(list(PerPlan.values), WHOLE, {}) if one.score is not None]) == 2
    assert {plans for plans, _ in heard} == {2}
    shares = [share for _, share in heard]
    assert shares == sorted(shares)
    assert 0 < shares[0] < shares[-1] == 1


def consume(found: Iterator[tuple[Plan, Reading]], readings: dict[Plan, Reading]) -> None:
    """Keep what comes until something is raised."""
    readings.update(found)


def measurement_of(values: dict[Plan, list[float]]) -> Measurement:
    PerPlan.values = values
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=16))
    return Measurement(lambda: prefix_cache, ObjectiveOnItems(PerPlan(), many_items(64), "objective 'per-plan'"))


@pytest.mark.parametrize(("count", "sizes"), [(7, [7]), (32, [16, 16]), (100, [17, 17, 17, 17, 16, 16]), (256, [32] * 8)])
def test_rounds_hold_every_item_once_in_a_random_order_that_is_always_the_same(count: int, sizes: list[int]) -> None:
    items = many_items(count)
    rounds = in_rounds(items)
    assert [len(of_round) for of_round in rounds] == sizes
    assert sorted(item.name for of_round in rounds for item in of_round) == sorted(item.name for item in items)
    assert rounds == in_rounds(items)
    assert count < 32 or [int(item.name) for item in rounds[0]] != sorted(int(item.name) for item in rounds[0])


def test_one_that_is_worse_than_a_single_better_plan_is_not_surely_out_of_the_best_two() -> None:
    """The second of the two that lead may lead by luck alone: it has to be surely better as well."""
    luck = Random(3)
    steady, lucky, second = (Plan.unified(Removal([Drop(block)])) for block in range(3))
    shared = [luck.uniform(-0.1, 0.1) for _ in range(64)]
    table = {
        steady: [0.6 + s for s in shared],
        lucky: [0.2] * 64,
        second: [0.5 + s + luck.uniform(-0.02, 0.02) for s in shared],
    }
    first_round = [int(item.name) for item in in_rounds(many_items(64))[0]]
    for place in first_round:
        table[lucky][place] = 1.0 if place % 3 else 0.4
    readings = together(table, Stop(keep=2))
    assert readings[second].score is not None
    assert math.fsum(table[second]) > math.fsum(table[lucky])
    assert together(table, Stop(keep=1))[second].score is None


def test_the_best_of_many_equal_plans_is_given_up_no_more_often_than_allowed() -> None:
    """The error is that of a request, over all of its plans and rounds."""
    wrong, trials = 0, 60
    for trial in range(trials):
        luck = Random(trial)
        table = {
            Plan.unified(Removal([Drop(block)])): [min(1.0, max(0.0, luck.gauss(0.5, 0.2))) for _ in range(128)]
            for block in range(6)
        }
        best = max(table, key=lambda plan: math.fsum(table[plan]))
        wrong += together(table, Stop(keep=1))[best].score is None
    assert wrong <= 0.05 * trials


class Inverse(PerPlan):
    """Lower is better, and the score has no value for a mean far below those that can be."""

    name = "inverse"
    best_item: ClassVar[float | None] = 0.0

    def score(self, mean: float) -> float:
        return 100 / (1 + math.sqrt(mean + 0.01))


class Boundless(Inverse):
    """The same without a best value, so that how far a mean can fall is not known."""

    name = "boundless"
    best_item: ClassVar[float | None] = None


def likely_ceiling(objective: Objective, values: Sequence[float], beside: Sequence[float]) -> float:
    on_items = ObjectiveOnItems(objective, many_items(64), "objective 'inverse'")
    mean = math.fsum(beside) / len(beside)
    return on_items.likely_ceiling(values, Reading(50.0, mean, tuple(beside)), list(range(16)), 0.05)


def test_a_likely_ceiling_asks_for_no_score_of_a_mean_that_cannot_be() -> None:
    luck = Random(0)
    noisy = [luck.choice((0.0, 0.0, 2.0)) for _ in range(64)]
    assert likely_ceiling(Inverse(), noisy, [0.5] * 64) == pytest.approx(Inverse().score(0.0))
    # Surely worse: the better bound is above 0, and the worse one is not asked for.
    worse = [2 + value / 10 for value in noisy]
    assert Inverse().score(2.5) < likely_ceiling(Inverse(), worse, [0.5] * 64) < Inverse().score(1.5)


def test_an_objective_that_has_no_score_for_a_mean_is_named() -> None:
    luck = Random(0)
    with pytest.raises(PluginError, match=r"^objective 'inverse' failed: ValueError"):
        likely_ceiling(Boundless(), [luck.choice((0.0, 0.0, 2.0)) for _ in range(64)], [0.5] * 64)


def test_a_score_of_other_items_is_no_one_to_be_compared_with() -> None:
    values = plans_worth(0.6)
    (reading,) = together(values, Stop(50.0, Reading(90.0, 0.9, (0.9,)))).values()
    assert reading.score is not None


@pytest.mark.parametrize("weight", [0.0, -1.0, math.nan, math.inf])
def test_a_weight_that_cannot_be_is_named_with_its_item(monkeypatch: pytest.MonkeyPatch, weight: float) -> None:
    monkeypatch.setattr(PerPlan, "weight", lambda _self, _item: weight)
    with pytest.raises(PluginError) as caught:
        ObjectiveOnItems(PerPlan(), many_items(2), "objective 'weighs'")
    assert str(caught.value) == f"objective 'weighs' gave the item '0' a weight of {weight}: it must be above 0 and finite"
