"""The paper's splitter and the two fixed ones, on tables in which every gain is planted."""

from __future__ import annotations

import math
import statistics
from random import Random
from typing import TYPE_CHECKING, Literal

import pytest
from hypothesis import strategies as st

from pdtrim_core import Drop, Merge, Plan, Removal
from pdtrim_core.data.readings import Reading
from pdtrim_core.testing.contracts import Table, split_on_table
from pdtrim_plugins.splitters import DensePrefill, Gain, Unified
from tests.unit.examples import given

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pdtrim_core.search.driver import Measure

START = 50.0
REMOVAL = Removal(map(Drop, (1, 2, 3, 4)))
MODES: tuple[Literal["independent"], Literal["cumulative"]] = ("independent", "cumulative")


def planted(gains: Mapping[int, float], start: float = START) -> Callable[[Plan], float]:
    """Return a table in which each block that prefill is given back brings what is planted, whatever else is given back."""
    return lambda plan: start + sum(gain for block, gain in gains.items() if not plan.prefill.at(block))


def kept_in_prefill(plan: Plan) -> tuple[int, ...]:
    """Return the blocks that prefill keeps and decode loses."""
    return tuple(element.blocks[0] for element in plan.decode if element not in plan.prefill)


def split(splitter: Gain, value: Callable[[Plan], float]) -> tuple[tuple[int, ...], list[Plan], list[str]]:
    notes: list[str] = []
    final, asked = split_on_table(splitter, REMOVAL, Table(value), note=notes.append)
    return kept_in_prefill(final), asked, notes


# Gain


def test_gain_spares_exactly_the_elements_that_bring_the_threshold() -> None:
    kept, _, notes = split(Gain(), planted({1: 5.0, 2: 3.0, 3: 2.9, 4: -1.0}))
    assert kept == (1, 2)
    assert notes == []


def test_gain_asks_for_the_start_each_element_alone_and_the_result() -> None:
    _, asked, _ = split(Gain(), planted({1: 5.0, 2: 3.0, 3: 2.9, 4: -1.0}))
    alone = [Plan(prefill=REMOVAL.without(element), decode=REMOVAL) for element in REMOVAL]
    final = Plan(prefill=Removal(map(Drop, (3, 4))), decode=REMOVAL)
    assert asked == [Plan.unified(REMOVAL), *alone, final]
    assert Gain().steps(Plan.unified(REMOVAL)) == len(asked)


@pytest.mark.parametrize(("threshold", "kept"), [(0.0, (1, 2, 3)), (3.0, (1, 2)), (4.0, (1,)), (10.0, ())])
def test_the_threshold_decides_what_is_spared(threshold: float, kept: tuple[int, ...]) -> None:
    assert split(Gain(threshold=threshold), planted({1: 5.0, 2: 3.0, 3: 2.9, 4: -1.0}))[0] == kept


def test_a_gain_of_exactly_the_threshold_counts_wherever_it_begins() -> None:
    """On 1000 items, 41 right answers instead of 11 are 3 points; 4.1 - 1.1 is a little less than 3.0 in floats."""
    starts = [right / 10 for right in range(970)]
    missed = [start for start in starts if split(Gain(), planted({1: 3.0}, start))[0] != (1,)]
    assert missed == []


def test_relative_thresholds_are_percent_of_the_start() -> None:
    """3 % of 50 points are 1.5 points."""
    value = planted({1: 1.6, 2: 1.4, 3: 0.0, 4: -1.0})
    assert split(Gain(unit="relative"), value)[0] == (1,)
    assert split(Gain(unit="score"), value)[0] == ()
    assert split(Gain(unit="relative", threshold=2.0), value)[0] == (1, 2)


def test_elements_that_lose_together_are_given_back_one_after_the_other() -> None:
    """Blocks 1 and 2 bring 6 and 5 points alone, and cost 20 together; 3 brings 4 in any company."""

    def value(plan: Plan) -> float:
        both = not plan.prefill.at(1) and not plan.prefill.at(2)
        return planted({1: 6.0, 2: 5.0, 3: 4.0})(plan) - 31 * both

    kept, _, notes = split(Gain(), value)
    assert kept == (1, 3)
    assert "".join(notes) == (
        "splitter gain: the elements that gain alone lose together (50.0 to 34.0 points); giving them back one after the "
        "other reached 60.0"
    )


def test_giving_back_stops_where_the_next_element_brings_less_than_the_threshold() -> None:
    def value(plan: Plan) -> float:
        given_back = sum(not plan.prefill.at(block) for block in (1, 2, 3))
        return {0: 50.0, 1: 54.0, 2: 56.0, 3: 40.0}[given_back]

    kept, asked, _ = split(Gain(), value)
    assert kept == (1,)
    trials_of_two_rounds = len(REMOVAL) + len(REMOVAL) - 1
    assert len(asked) == 1 + len(REMOVAL) + 1 + trials_of_two_rounds


def test_a_joint_plan_that_is_as_good_as_its_start_is_taken() -> None:
    def value(plan: Plan) -> float:
        return 55.0 if len(plan.prefill) == 3 else START

    kept, _, notes = split(Gain(), value)
    assert kept == (1, 2, 3, 4)
    assert notes == []


def test_a_split_never_ends_below_its_start() -> None:
    """Each element alone brings 5 points, any two cost all."""

    def value(plan: Plan) -> float:
        return {4: START, 3: 55.0}.get(len(plan.prefill), 0.0)

    kept, _, notes = split(Gain(), value)
    assert kept == (1,)
    assert len(notes) == 1


def test_a_merge_is_spared_as_one_element() -> None:
    removal = Removal([Drop(0), Merge(keep=3, drop=4)])
    final, _ = split_on_table(Gain(), removal, Table(planted({3: 7.0})))
    assert final == Plan(prefill=Removal([Drop(0)]), decode=removal)


def test_a_threshold_below_the_standard_error_is_warned_of() -> None:
    """Eight items of which two turn right and one wrong, for each element that is given back."""
    before = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    after = (1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    differences = [new - old for new, old in zip(after, before, strict=True)]
    error = 100 * statistics.stdev(differences) / 8**0.5
    notes = _split_items(Gain(), before, after)
    assert "".join(notes) == (
        f"splitter gain: the threshold of 3 points is below the standard error of a gain ({error:.1f} points): use more "
        "calibration samples; the objective margin is smoother than accuracy"
    )
    assert _split_items(Gain(threshold=error + 0.01), before, after) == []
    assert len(_split_items(Gain(threshold=error - 0.01), before, after)) == 1


def test_the_warning_names_a_relative_threshold_in_points() -> None:
    """3 % of 37.5 points."""
    before = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    after = (1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    (note,) = _split_items(Gain(unit="relative"), before, after)
    assert note.startswith("splitter gain: the threshold of 1.12 points is below")


def _split_items(splitter: Gain, before: tuple[float, ...], after: tuple[float, ...]) -> list[str]:
    notes: list[str] = []

    def measure(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        items = before if plan.prefill == plan.decode else after
        mean = statistics.fmean(items)
        return Reading(100 * mean, mean, items, slope=100.0, ceiling=100 * mean)

    split_on_table(splitter, REMOVAL, measure, note=notes.append)
    return notes


# Gain, in standard errors


def _on_items(
    gains: Mapping[int, Sequence[float]], to_score: Callable[[float], float], slope: Callable[[float], float]
) -> Measure:
    """Return a measurement in which each block that prefill keeps adds to the values of the eight items."""

    def measure(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        items = [BASE] * 8
        for block, added in gains.items():
            if not plan.prefill.at(block):
                items = [value + more for value, more in zip(items, added, strict=True)]
        mean = statistics.fmean(items)
        return Reading(to_score(mean), mean, tuple(items), slope=slope(mean), ceiling=to_score(mean))

    return measure


BASE = 0.5
SURE, WILD = (0.02, 0.03) * 4, (0.4, -0.2) * 4
"""Gains of 2.5 points with an error of 0.19, and of 10 points with an error of 11."""


def _in_errors(splitter: Gain, gains: Mapping[int, Sequence[float]], *, kl: bool = False) -> tuple[tuple[int, ...], list[str]]:
    notes: list[str] = []
    to_score, slope = (
        (lambda m: 100 * math.exp(-m), lambda m: -100 * math.exp(-m)) if kl else (lambda m: 100 * m, lambda _: 100.0)
    )
    final, _ = split_on_table(splitter, REMOVAL, _on_items(gains, to_score, slope), note=notes.append)
    return kept_in_prefill(final), notes


@pytest.mark.parametrize("mode", MODES)
def test_in_standard_errors_a_sure_gain_counts_and_a_larger_one_that_may_be_luck_does_not(
    mode: Literal["independent", "cumulative"],
) -> None:
    gains = {1: WILD, 2: SURE, 3: (0.0,) * 8, 4: (-0.02, -0.03) * 4}
    assert _in_errors(Gain(unit="errors", threshold=2, mode=mode), gains) == ((2,), [])
    assert _in_errors(Gain(unit="score", threshold=3, mode=mode), gains)[0] == (1,)


def test_the_threshold_in_errors_is_met_exactly() -> None:
    error = statistics.stdev(SURE) / 8**0.5
    errors = statistics.fmean(SURE) / error
    assert _in_errors(Gain(unit="errors", threshold=errors - 0.01), {2: SURE})[0] == (2,)
    assert _in_errors(Gain(unit="errors", threshold=errors + 0.01), {2: SURE})[0] == ()


def test_a_gain_without_an_error_reaches_any_threshold_and_no_gain_reaches_none() -> None:
    """All items gain alike for block 1, and nothing changes for the others."""
    assert _in_errors(Gain(unit="errors", threshold=50), {1: (0.01,) * 8})[0] == (1,)
    kept, (told,) = _in_errors(Gain(unit="errors", threshold=0.1), {})
    assert kept == ()
    assert told.endswith("the largest gain is 0 points, of element 1, with a standard error of 0")


def test_under_divergences_a_lower_mean_is_the_gain() -> None:
    gains = {1: tuple(-gain for gain in WILD), 2: tuple(-gain for gain in SURE), 3: SURE}
    assert _in_errors(Gain(unit="errors", threshold=2), gains, kl=True) == ((2,), [])


def test_where_no_gain_is_sure_the_largest_is_named_with_its_error() -> None:
    kept, (told,) = _in_errors(Gain(unit="errors", threshold=2), {1: (-0.02, -0.03) * 4, 3: WILD})
    assert kept == ()
    assert told == (
        "splitter gain: no element gains 2 standard errors, so prefill loses what decode loses; the largest gain is 10 points, "
        "of element 3, with a standard error of 11: more calibration samples, or a smoother objective, would tell more"
    )


# Gain, one after the other


def test_the_mode_decides_whether_gains_are_measured_on_top_of_each_other() -> None:
    """Blocks 1 and 2 bring 5 points alone and 6 together; block 3 brings 4 once block 1 is back."""

    def value(plan: Plan) -> float:
        back = {block for block in (1, 2, 3) if not plan.prefill.at(block)}
        return START + 5 * bool(back & {1, 2}) + (back >= {1, 2}) + 4 * (back >= {1, 3})

    assert split(Gain(), value)[0] == (1, 2)
    assert split(Gain(mode="cumulative"), value)[0] == (1, 3)


def test_what_helps_only_together_is_not_found_by_either_mode() -> None:
    def value(plan: Plan) -> float:
        return START + 20 * (not plan.prefill.at(1) and not plan.prefill.at(2))

    assert split(Gain(), value)[0] == split(Gain(mode="cumulative"), value)[0] == ()


def test_cumulative_asks_for_rounds_each_on_top_of_the_best_so_far() -> None:
    kept, asked, notes = split(Gain(mode="cumulative"), planted({1: 2.0, 2: 3.0, 3: 5.0, 4: -1.0}))
    assert kept == (2, 3)
    assert notes == []
    three, two_three = (Removal(map(Drop, blocks)) for blocks in ((1, 2, 4), (1, 4)))
    rounds = [[Plan(left.without(e), REMOVAL) for e in left] for left in (REMOVAL, REMOVAL, three, two_three)]
    assert asked == [Plan.unified(REMOVAL), *(plan for trials in rounds for plan in trials)]


@pytest.mark.parametrize("unit", ["score", "relative"])
def test_cumulative_keeps_to_the_threshold_and_its_unit(unit: Literal["score", "relative"]) -> None:
    """3 % of 50 points are 1.5 points."""
    value = planted({1: 1.6, 2: 1.4, 3: 3.0, 4: -1.0})
    expected = {"score": (3,), "relative": (1, 3)}
    assert split(Gain(mode="cumulative", unit=unit), value)[0] == expected[unit]
    assert split(Gain(mode="cumulative", unit=unit, threshold=20.0), value)[0] == ()


def test_cumulative_warns_of_a_threshold_below_the_standard_error_too() -> None:
    before = (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    after = (1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert _split_items(Gain(mode="cumulative"), before, after) == _split_items(Gain(), before, after) != []


@given(st.lists(st.integers(-80, 80), min_size=4, max_size=4), st.sampled_from([0.0, 1.5, 3.0]))
def test_where_gains_add_up_both_modes_agree(tenths: list[int], threshold: float) -> None:
    value = planted({block: tenth / 10 for block, tenth in zip((1, 2, 3, 4), tenths, strict=True)})
    independent, cumulative = (split(Gain(threshold=threshold, mode=mode), value)[0] for mode in MODES)
    assert independent == cumulative


@given(st.integers(0, 1000), st.sampled_from([0.0, 3.0, 10.0]))
def test_a_cumulative_split_gains_the_threshold_with_each_element_and_leaves_none_that_would(seed: int, threshold: float) -> None:
    def value(plan: Plan) -> float:
        return Random(f"{seed} {plan.prefill}").uniform(0, 100)

    final, asked = split_on_table(Gain(threshold=threshold, mode="cumulative"), REMOVAL, Table(value))
    score = {plan: Table(value)(plan, None, None).score or 0.0 for plan in asked}
    gained = score[final] - score[Plan.unified(REMOVAL)]
    assert gained >= threshold * (len(REMOVAL) - len(final.prefill)) - 1e-9
    left = [Plan(final.prefill.without(element), REMOVAL) for element in final.prefill]
    assert all(round(score[plan] - score[final], 4) < threshold for plan in left)
    assert len(asked) <= 1 + len(REMOVAL) + (Gain(mode="cumulative").steps(Plan.unified(REMOVAL)) or 0)


def test_a_negative_threshold_is_refused() -> None:
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        Gain(threshold=-0.1)


# Unified and dense prefill


def test_the_other_splitters_measure_their_result_alone() -> None:
    for splitter in (Unified(), DensePrefill()):
        final, asked = split_on_table(splitter, REMOVAL, Table(planted({})))
        assert asked == [final]
        assert splitter.steps(Plan.unified(REMOVAL)) == 1


def test_unified_loses_the_same_in_both_stages() -> None:
    assert split_on_table(Unified(), REMOVAL, Table(planted({})))[0] == Plan.unified(REMOVAL)


def test_dense_prefill_loses_nothing_in_prefill() -> None:
    assert split_on_table(DensePrefill(), REMOVAL, Table(planted({})))[0] == Plan(decode=REMOVAL)
