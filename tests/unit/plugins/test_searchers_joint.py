"""The search over both stages: the ceiling holds in every plan, what it allows is used, and moves reach all four states."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from pdtrim_core import Drop, KvOnly, Merge, PdtrimError, Plan, Removal
from pdtrim_core.search.driver import Ledger, drive
from pdtrim_core.testing.contracts import Table, rugged, table_space
from pdtrim_plugins.searchers import Joint
from tests.unit.examples import given

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdtrim_core.api import SearchSpace

CEILINGS = (0.3, 0.45, 0.6, 0.85, 1.0)
MERGING = 0.8


def asked_by(
    searcher: Joint, space: SearchSpace, value: Callable[[Plan], float] = rugged, *, seed: int = 0
) -> tuple[Plan, list[Plan]]:
    asked: list[Plan] = []
    ledger = Ledger(Table(value), notify=lambda candidate: asked.append(candidate.plan))
    found, _ = drive(searcher.search(space, Random(seed)), ledger, label="searcher 'joint'", problems=space.problems)
    assert found is not None
    return found.plan, asked


def prefers(plan: Plan) -> Callable[[Plan], float]:
    """Return a table that is worth more the nearer a plan is to this one."""

    def value(other: Plan) -> float:
        shared = sum(e in other.decode for e in plan.decode) + sum(e in other.prefill for e in plan.prefill)
        keep_in_prefill = sum(e not in plan.prefill for e in other.prefill)
        return 50.0 + 5 * shared - 2 * keep_in_prefill

    return value


def truncated(space: SearchSpace, whether: bool) -> SearchSpace:
    """Return a space whose costs count a truncated prefill, or a whole one."""
    return replace(space, costs=replace(space.costs, truncated_prefill=whether))


@given(st.sampled_from(CEILINGS), st.integers(0, 5), st.booleans(), st.booleans(), st.integers(0, 20))
def test_every_plan_is_under_the_ceiling_and_has_no_room_for_one_more_place(
    ceiling: float, count: int, merging: bool, tail: bool, seed: int
) -> None:
    count = min(count, 3) if merging else count
    space = truncated(table_space(count, merge_threshold=MERGING if merging else None), tail)
    try:
        _, asked = asked_by(Joint(prefill_at_most=ceiling), space, seed=seed)
    except PdtrimError as error:
        assert "out of reach" in str(error)  # noqa: PT017 - either outcome is right
        return
    for plan in asked:
        assert space.cost(plan, "prefill") <= ceiling
        for element in plan.prefill:
            given_back = Plan(prefill=plan.prefill.without(element), decode=plan.decode)
            if not isinstance(element, KvOnly) or not any(isinstance(e, Merge) for e in plan.decode.at(element.slot)):
                assert space.cost(given_back, "prefill") > ceiling


@pytest.mark.parametrize("seed", range(4))
def test_without_a_ceiling_prefill_stays_dense_and_only_decode_is_searched(seed: int) -> None:
    _, asked = asked_by(Joint(), table_space(2), seed=seed)
    assert all(not len(plan.prefill) for plan in asked)
    assert len({plan.decode for plan in asked}) > 5


def test_it_starts_from_a_prefill_that_keeps_all_it_can_and_from_one_that_loses_what_decode_loses() -> None:
    space = table_space(2)
    _, asked = asked_by(Joint(prefill_at_most=0.75), space)
    kept, lost = asked[:2]
    assert kept.decode == lost.decode == space.first
    assert set(map(str, kept.prefill)) == {"kv:5", "4"}
    assert lost.prefill == space.first


def test_shallow_places_are_kept_first_and_deep_ones_only_give_their_kv() -> None:
    space = truncated(table_space(1), True)
    _, (start, *_) = asked_by(Joint(prefill_at_most=0.6), space)
    assert start.prefill.elements[0].blocks[0] > 2
    assert all(isinstance(e, KvOnly) for e in start.prefill if e not in start.decode)


@pytest.mark.parametrize("seed", range(6))
def test_it_finds_a_plan_that_no_split_of_a_shared_removal_can_reach(seed: int) -> None:
    space = table_space(2)
    wanted = Plan(prefill=Removal([KvOnly(1), KvOnly(5)]), decode=Removal([Drop(2), Drop(3)]))
    assert space.cost(wanted, "prefill") <= 0.8
    found, _ = asked_by(Joint(prefill_at_most=0.8, t0=20.0, alpha=0.98), space, prefers(wanted), seed=seed)
    assert found == wanted


def test_all_four_states_come_up_over_merges_too() -> None:
    space = table_space(3, merge_threshold=MERGING)
    _, asked = asked_by(Joint(prefill_at_most=0.7, alpha=0.97), space)
    merges = [element for element in space.elements if isinstance(element, Merge)]
    assert merges
    states = {(plan.state("prefill", b), plan.state("decode", b)) for plan in asked for b in range(space.block_count)}
    assert {("run", "run"), ("kv-only", "run"), ("gone", "gone"), ("run", "gone")} <= states
    assert {("merged", "merged"), ("kv-only", "merged")} & states
    assert ("run", "merged") in states


def test_with_nothing_to_remove_only_prefill_is_searched() -> None:
    _, asked = asked_by(Joint(prefill_at_most=0.6), table_space(0))
    assert all(not len(plan.decode) for plan in asked)
    assert len({plan.prefill for plan in asked}) > 3


def test_a_ceiling_below_the_kv_of_all_blocks_is_refused_with_the_least_there_is() -> None:
    with pytest.raises(PdtrimError, match=r"prefill_at_most = 0.001 is out of reach.* cost (0\.\d+) ") as caught:
        asked_by(Joint(prefill_at_most=0.001), table_space(2))
    least = float(str(caught.value).split(" cost ")[1].split(" ", maxsplit=1)[0])
    _, asked = asked_by(Joint(prefill_at_most=least), table_space(2))
    assert asked


def test_the_preview_counts_the_starts_and_the_steps() -> None:
    searcher = Joint(prefill_at_most=0.75)
    _, asked = asked_by(searcher, table_space(2))
    assert searcher.steps(table_space(2)) == len(asked) == 44


def test_what_is_said_to_be_safe_enters_more_often() -> None:
    """Block 4 has the best score of those outside, block 0 the worst."""
    space = replace(table_space(1), first=Removal([Drop(1)]))
    _, asked = asked_by(Joint(alpha=0.999), space, lambda _: 50.0)
    entered = Counter(plan.decode.elements[0].blocks[0] for plan in asked)
    assert entered[4] > 3 * entered[0] > 0
