"""A search whose time is over gives a plan of full size at whatever moment that is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from random import Random

import pytest

from pdtrim_core.api import Drop, PdtrimError, Plan, Removal, Requests, Searcher, SearchSpace
from pdtrim_core.api.requests import Probe, best_of, measure
from pdtrim_core.data.readings import Reading, Underway
from pdtrim_core.search.driver import Ledger, drive
from pdtrim_core.search.out_of_time import OutOfTime, completed
from pdtrim_core.search.stopping import Stop
from pdtrim_core.testing.contracts.tables import BLOCKS, Table, rugged, score_of, stopped_on_table, table_space
from pdtrim_plugins.searchers import Beam, Exhaustive, Sequential


def unified(*blocks: int) -> Plan:
    return Plan.unified(Removal(map(Drop, blocks)))


class OneBlockAtATime(Searcher):
    """As somebody else might write it: all probes of a size in a list, and one plan at the very end."""

    name = "one-block-at-a-time"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        best = Removal()
        while best.blocks_removed < space.count - 1:
            grown = [best.with_(element) for element in space.elements[1:] if element not in best]
            scores = yield from measure([Probe(space.plan_of(removal)) for removal in grown])
            best = grown[scores.index(max(scores))]
        yield from measure(space.plan_of(best.with_(next(element for element in space.elements[1:] if element not in best))))


@pytest.mark.parametrize("searcher", [Sequential(), Beam(), Beam(protect_first=0), OneBlockAtATime()], ids=lambda one: one.name)
@pytest.mark.parametrize("after", range(16))
def test_at_every_moment_there_is_a_plan_without_protected_blocks(searcher: Searcher, after: int) -> None:
    plan = stopped_on_table(searcher, table_space(3), Table(rugged), after=after)
    assert plan.decode.blocks_removed == 3
    if getattr(searcher, "protect_first", 1):
        assert Drop(0) not in plan.decode


def test_what_was_chosen_so_far_is_filled_up_by_block_scores() -> None:
    # By scores the safest blocks are 4, 3, 2 and 1; alone, block 1 costs least.
    space = table_space(3)
    table = Table(lambda plan: 90.0 if plan.decode == Removal([Drop(1)]) else 50.0 - len(plan.decode))
    assert stopped_on_table(Sequential(), space, table, after=0) == unified(2, 3, 4)
    # The list was not measured to its end, but what was of it counts.
    assert stopped_on_table(Sequential(), space, table, after=1) == unified(1, 3, 4)
    assert stopped_on_table(Sequential(), space, table, after=4) == unified(1, 3, 4)
    two = Table(lambda plan: 90.0 if plan.decode in {Removal([Drop(1)]), Removal([Drop(1), Drop(2)])} else 50.0)
    assert stopped_on_table(Sequential(), space, two, after=7) == unified(1, 2, 4)


def test_the_best_plan_of_full_size_counts_though_others_were_pending() -> None:
    found = stopped_on_table(Exhaustive(drops=6), table_space(2), Table(rugged), after=5)
    measured = [unified(a, b) for a in range(BLOCKS) for b in range(a + 1, BLOCKS)][:5]
    assert found == max(measured, key=rugged)


def test_plans_of_full_size_that_nothing_is_known_of_are_taken_by_block_scores() -> None:
    assert stopped_on_table(Exhaustive(drops=6), table_space(2), Table(rugged), after=0) == unified(3, 4)


def test_a_ceiling_that_what_was_begun_cannot_be_under_is_told_with_what_to_do() -> None:
    stopped = OutOfTime(None, {unified(1): score_of(50)}, [], [Drop(1)])
    assert completed(stopped, table_space(3), 0.9).decode.blocks_removed == 3
    with pytest.raises(PdtrimError, match=r"removes 3 blocks, and what it had, filled up, .* above the searcher's 0.1: give it"):
        completed(stopped, table_space(3), 0.1)


def test_a_searcher_that_asks_for_the_same_for_ever_is_stopped_too() -> None:
    class Loops(Searcher):
        name = "loops"

        def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
            while True:
                yield from measure(space.plan_of(space.first))

    now = iter(range(1000))
    ledger = Ledger(Table(rugged))
    space = table_space(3)
    with ledger.limited(lambda: next(now) > 60), pytest.raises(OutOfTime) as stopped:
        drive(Loops().search(space, Random(0)), ledger, label="loops")
    assert stopped.value.best == space.plan_of(space.first)
    # Behind a search there is no limit.
    ledger.exact(unified(0))


def test_a_searcher_is_closed_when_it_is_stopped() -> None:
    seen: list[str] = []

    def search(space: SearchSpace) -> Requests[None]:
        try:
            yield from measure(space.plan_of(space.first))
        finally:
            seen.append("closed")

    ledger = Ledger(Table(rugged))
    with ledger.limited(lambda: True), pytest.raises(OutOfTime):
        drive(search(table_space(2)), ledger, label="x")
    assert seen == ["closed"]


def test_a_list_of_which_no_plan_is_done_is_left_where_its_plans_are_underway() -> None:
    """Values that are on their way are recorded, and the time is looked at with each of them."""
    space, recorded, clock = table_space(2), dict[Plan, Reading](), iter(range(100))

    def together(plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        for items in ((0.5, None), (0.5, 0.5)):
            for plan in plans:
                yield plan, Underway(None, None, items) if None in items else Reading(50.0, 0.5, items)

    ledger = Ledger(Table(rugged), together=together, record=recorded.__setitem__)
    plans = [space.plan_of(Removal([Drop(1), Drop(block)])) for block in (2, 3, 4)]
    with ledger.limited(lambda: next(clock) >= 2), pytest.raises(OutOfTime) as stopped:
        drive(best_of(plans), ledger, label="x")
    assert (stopped.value.best, ledger.tally.measured, ledger.tally.cut_short) == (None, 0, 0)
    assert [reading.items for reading in recorded.values()] == [(0.5, None)] * 2
    assert completed(stopped.value, space) == plans[-1]
    assert ledger.exact(plans[0]) == 50.0
