"""The splitters on tables in which every gain is planted."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest

from pdtrim_core import Drop, Merge, Plan, Removal
from pdtrim_core.search import Reading
from pdtrim_core.testing.contracts import Table, split_on_table, table_space
from pdtrim_plugins.splitters import DensePrefill, Gain, Unified

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

START = 50.0
REMOVAL = Removal(map(Drop, (1, 2, 3, 4)))


def planted(gains: Mapping[int, float], start: float = START) -> Callable[[Plan], float]:
    """Return a table in which each block that prefill is given back brings what is planted, whatever else is given back."""
    return lambda plan: start + sum(gain for block, gain in gains.items() if not plan.prefill.at(block))


def spared(plan: Plan) -> tuple[int, ...]:
    """Return the blocks that prefill keeps and decode loses."""
    return tuple(element.blocks[0] for element in plan.decode if element not in plan.prefill)


def split(splitter: Gain, value: Callable[[Plan], float]) -> tuple[tuple[int, ...], list[Plan], list[str]]:
    notes: list[str] = []
    final, asked = split_on_table(splitter, REMOVAL, Table(value), note=notes.append)
    return spared(final), asked, notes


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
    assert Gain().steps(table_space(len(REMOVAL))) == len(asked)


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
    assert split(Gain(unit="points"), value)[0] == ()
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
        "calibration samples, or a smoother objective such as margin"
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


def test_the_other_splitters_measure_nothing() -> None:
    for splitter in (Unified(), DensePrefill()):
        _, asked = split_on_table(splitter, REMOVAL, Table(planted({})))
        assert asked == []


def test_unified_loses_the_same_in_both_stages() -> None:
    assert split_on_table(Unified(), REMOVAL, Table(planted({})))[0] == Plan.unified(REMOVAL)


def test_dense_prefill_loses_nothing_in_prefill() -> None:
    assert split_on_table(DensePrefill(), REMOVAL, Table(planted({})))[0] == Plan(decode=REMOVAL)
