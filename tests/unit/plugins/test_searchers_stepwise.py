"""The searches that remove one element at a time."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import BestOf, Drop, PdtrimError, Plan, Probe, Removal, Scores, Searcher, SearchSpace
from pdtrim_core.search.driver import BestPlan, Ledger, drive
from pdtrim_core.search.space import search_space, two_sets, without_merges
from pdtrim_core.testing.contracts import Table, rugged, search_on_table, table_space
from pdtrim_core.testing.contracts.tables import score_of, table_spaces
from pdtrim_plugins.searchers import Beam, Exhaustive, Sequential
from tests.reference import reference

if TYPE_CHECKING:
    from collections.abc import Callable

FREE = {"protect_first": 0, "protect_last": 0}


def plain_space(blocks: int, count: int) -> SearchSpace:
    scores = Scores((0.5,) * blocks, similarity=True)
    return search_space(scores, count, without_merges(two_sets(scores, count), scores))


def table_of(number: int) -> Callable[[Plan], float]:
    """Return one of many tables without rhyme or reason."""
    return lambda plan: Random(f"{number} {plan}").uniform(0, 100)


def found_by(searcher: Searcher, space: SearchSpace, value: Callable[[Plan], float] = rugged) -> BestPlan:
    """Return what a searcher finds under the rule that a result removes just as many blocks as are asked."""
    asks = searcher.search(space, Random(0))
    found, _ = drive(asks, Ledger(Table(value)), label=f"searcher '{searcher.name}'", problems=space.problems)
    assert found is not None
    return found


def asked_by(searcher: Searcher, space: SearchSpace, value: Callable[[Plan], float] = rugged) -> list[Plan]:
    """Return all plans that a searcher measures, probes among them."""
    asked: list[Plan] = []
    asks = searcher.search(space, Random(0))
    drive(asks, Ledger(Table(value), notify=lambda candidate: asked.append(candidate.plan)), label=searcher.name)
    return asked


def blocks_of(plan: Plan) -> list[int]:
    return [block for element in plan.decode for block in element.blocks]


# Sequential


@pytest.mark.parametrize("number", range(8))
def test_sequential_does_what_its_pseudo_code_does(number: int) -> None:
    value = table_of(number)
    removed: list[int] = []
    expected: list[Plan] = []
    for _ in range(4):
        trials = {block: Plan.unified(Removal(map(Drop, (*removed, block)))) for block in range(1, 9) if block not in removed}
        expected += trials.values()
        removed.append(max(trials, key=lambda block: (round(value(trials[block]), 4), -block)))
    space = plain_space(10, 4)
    assert asked_by(Sequential(), space, value) == expected
    assert found_by(Sequential(), space, value).plan == Plan.unified(Removal(map(Drop, removed)))


def test_sequential_takes_slebs_path_through_slebs_losses() -> None:
    """The losses of all 130 candidates that SLEB's own code measured on the 135M model; any other one is not in the table."""
    oracle = reference("sleb")

    def value(plan: Plan) -> float:
        phase = oracle["phases"][len(plan.decode) - 1]
        (new,) = set(blocks_of(plan)) - set(phase["already_removed"])
        return -float(phase["candidate_loss"][str(new)])

    space = plain_space(oracle["blocks"], len(oracle["removal_order"]))
    assert blocks_of(found_by(Sequential(), space, value).plan) == sorted(oracle["removal_order"])
    assert len(asked_by(Sequential(), space, value)) == sum(len(phase["candidate_loss"]) for phase in oracle["phases"]) == 130
    assert Sequential().steps(space) == 130


@pytest.mark.parametrize("number", range(8))
def test_sequential_takes_the_best_block_where_one_goes(number: int) -> None:
    value = table_of(number)
    best = max(range(1, 9), key=lambda block: value(Plan.unified(Removal([Drop(block)]))))
    assert blocks_of(found_by(Sequential(), plain_space(10, 1), value).plan) == [best]


def test_sequential_breaks_ties_by_the_lower_block() -> None:
    assert blocks_of(found_by(Sequential(), plain_space(10, 3), lambda plan: 50.0).plan) == [1, 2, 3]
    assert blocks_of(found_by(Sequential(), plain_space(10, 3), lambda plan: 50.0 * (9 not in blocks_of(plan))).plan) == [1, 2, 3]


@pytest.mark.parametrize("searcher", [Sequential(), Beam()], ids=["sequential", "beam"])
def test_plans_on_the_way_are_probes_and_those_at_the_end_are_not(searcher: Searcher) -> None:
    asks = searcher.search(plain_space(8, 3), Random(0))
    first, second = next(asks), asks.send([score_of(1.0)] * 6)
    assert isinstance(second, BestOf)
    third = asks.send([score_of(1.0)] * len(second.plans))
    assert isinstance(third, BestOf)
    for size, ask in enumerate((first, second, third), start=1):
        assert isinstance(ask, BestOf)
        assert all(isinstance(entry, Plan if size == 3 else Probe) for entry in ask.plans)
        plans = [entry.plan if isinstance(entry, Probe) else entry for entry in ask.plans]
        assert {len(plan.decode) for plan in plans} == {size}
        assert all(plan.prefill == plan.decode for plan in plans)
    with pytest.raises(StopIteration):
        asks.send([score_of(1.0)] * len(third.plans))


@pytest.mark.parametrize("searcher", [Sequential(**FREE), Beam(**FREE)], ids=["sequential", "beam"])
def test_the_result_removes_what_is_asked_also_none_or_all_but_one_and_with_merges(searcher: Searcher) -> None:
    for space in table_spaces():
        plan = found_by(searcher, space).plan
        assert plan.decode.blocks_removed == space.count
        assert set(plan.decode) <= set(space.elements)


@pytest.mark.parametrize("searcher", [Sequential(**FREE), Beam(**FREE)], ids=["sequential", "beam"])
def test_merges_are_removed_too_and_never_overlap_with_drops(searcher: Searcher) -> None:
    asked = asked_by(searcher, table_space(3, merge_threshold=0.8))
    assert {len(element.blocks) for plan in asked for element in plan.decode} == {1, 2}
    assert all(len(blocks_of(plan)) == len(set(blocks_of(plan))) for plan in asked)


@pytest.mark.parametrize("kind", [Sequential, Beam])
@pytest.mark.parametrize(
    ("options", "free"),
    [
        ({}, range(1, 9)),
        ({"protect_first": 0}, range(9)),
        ({"protect_last": 0}, range(1, 10)),
        ({"protect_first": 3}, range(3, 9)),
        ({"protect_last": 4}, range(1, 6)),
        ({"protect_first": 0, "protect_last": 2}, range(8)),
    ],
)
def test_protected_blocks_never_go(kind: type[Sequential | Beam], options: dict[str, int], free: range) -> None:
    searcher = kind.model_validate(options)
    asked = asked_by(searcher, plain_space(10, 3))
    assert {block for plan in asked for block in blocks_of(plan)} == set(free)
    assert found_by(searcher, plain_space(10, len(free))).plan == Plan.unified(Removal(map(Drop, free)))


@pytest.mark.parametrize("kind", [Sequential, Beam])
def test_a_merge_with_a_protected_block_never_goes(kind: type[Sequential | Beam]) -> None:
    space = table_space(2, merge_threshold=0.8)
    merged = {block for element in space.elements if len(element.blocks) == 2 for block in element.blocks}
    assert merged
    searcher = kind(protect_first=min(merged) + 1, protect_last=0)
    assert min(block for plan in asked_by(searcher, space) for block in blocks_of(plan)) > min(merged) + 1


@pytest.mark.parametrize("kind", [Sequential, Beam])
def test_too_many_protected_blocks_are_refused(kind: type[Sequential | Beam]) -> None:
    with pytest.raises(PdtrimError) as error:
        found_by(kind(protect_first=2), plain_space(6, 5))
    assert str(error.value) == (
        f"searcher '{kind.name}' was asked to remove 5 of the blocks, but only 3 of 6 elements are not protected: lower "
        "searcher.protect_first or searcher.protect_last, or ask for fewer blocks"
    )


def test_no_block_to_remove_is_one_measurement_even_where_all_are_protected() -> None:
    for searcher in (Sequential(), Beam(), Sequential(protect_first=99)):
        assert asked_by(searcher, plain_space(6, 0)) == [Plan()]
        assert searcher.steps(plain_space(6, 0)) == 1


@pytest.mark.parametrize(("options", "expected"), [({}, 8 + 7 + 6), (FREE, 10 + 9 + 8), ({"protect_last": 5}, 4 + 3 + 2)])
def test_sequential_announces_what_it_measures(options: dict[str, int], expected: int) -> None:
    searcher = Sequential.model_validate(options)
    assert searcher.steps(plain_space(10, 3)) == len(asked_by(searcher, plain_space(10, 3))) == expected


def worth(values: dict[int, float], together: dict[tuple[int, ...], float]) -> Callable[[Plan], float]:
    """Return a table: 90 less what each block costs, unless a set of blocks has a value of its own."""

    def value(plan: Plan) -> float:
        blocks = tuple(sorted(blocks_of(plan)))
        return together.get(blocks, 90 - sum(values[block] for block in blocks))

    return value


COSTS_ALONE = {block: float(block) for block in range(8)}


def test_after_the_first_step_the_best_candidates_alone_are_tried() -> None:
    """Blocks 5 and 6 would be the best two, but alone they are among the worst."""
    value = worth(COSTS_ALONE, {(5, 6): 95.0, (1, 6): 94.0})
    space = plain_space(8, 2)
    assert blocks_of(found_by(Sequential(), space, value).plan) == [1, 6]
    few = Sequential(candidates=3)
    assert blocks_of(found_by(few, space, value).plan) == [1, 2]
    asked = asked_by(few, space, value)
    assert len(asked) == few.steps(space) == 6 + 2
    assert {block for plan in asked if len(plan.decode) == 2 for block in blocks_of(plan)} == {1, 2, 3}


@pytest.mark.parametrize("count", [1, 3, 6])
def test_there_are_always_enough_candidates(count: int) -> None:
    space = plain_space(8, count)
    plan = found_by(Sequential(candidates=1), space).plan
    assert len(plan.decode) == count
    assert len(asked_by(Sequential(candidates=1), space)) <= (Sequential(candidates=1).steps(space) or 0)


def test_swaps_find_what_one_block_after_the_other_misses() -> None:
    value = worth(COSTS_ALONE, {(5, 6): 95.0, (1, 6): 94.0})
    assert blocks_of(found_by(Sequential(swaps=1), plain_space(8, 2), value).plan) == [5, 6]
    assert blocks_of(found_by(Sequential(swaps=1, candidates=2), plain_space(8, 2), value).plan) == [1, 6]


def test_swaps_end_where_none_is_better() -> None:
    value = worth(COSTS_ALONE, {})
    one, many = (asked_by(Sequential(swaps=swaps), plain_space(8, 2), value) for swaps in (1, 9))
    assert one == many


# Beam


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("options", [{}, FREE, {"protect_first": 2}])
def test_a_beam_of_one_is_sequential(number: int, options: dict[str, int]) -> None:
    for space in (plain_space(10, 4), plain_space(10, 1), plain_space(10, 0), table_space(2, merge_threshold=0.8)):
        beam, sequential = Beam.model_validate({"width": 1, **options}), Sequential.model_validate(options)
        assert asked_by(beam, space, table_of(number)) == asked_by(sequential, space, table_of(number))
        assert found_by(beam, space, table_of(number)) == found_by(sequential, space, table_of(number))
        assert beam.steps(space) == sequential.steps(space)


def test_a_beam_follows_the_best_removals_of_each_size() -> None:
    """Blocks 5 and 6 are harmless together; of the single blocks, 5 is the third best."""

    worth = {"{1}": 80.0, "{2}": 70.0, "{5}": 60.0, "{5, 6}": 90.0}

    def value(plan: Plan) -> float:
        return worth.get(str(plan.decode), 10.0)

    results = [found_by(Beam(width=width), plain_space(8, 2), value).score for width in (1, 2, 3)]
    assert results == [10.0, 10.0, 90.0]
    assert found_by(Beam(), plain_space(8, 2), value).score == 90.0


def test_a_beam_breaks_ties_by_order() -> None:
    asked = asked_by(Beam(width=2), plain_space(7, 2), lambda plan: 50.0)
    singles, pairs = [[block] for block in range(1, 6)], [[1, 2], [1, 3], [1, 4], [1, 5], [2, 3], [2, 4], [2, 5]]
    assert [blocks_of(plan) for plan in asked] == singles + pairs


@pytest.mark.parametrize("width", [1, 2, 3, 5, 100])
@pytest.mark.parametrize("count", [1, 2, 3, 6])
def test_a_beam_measures_no_removal_twice_and_no_more_than_it_announces(width: int, count: int) -> None:
    asked = asked_by(Beam(width=width), plain_space(8, count))
    assert len(set(asked)) == len(asked)
    announced = Beam(width=width).steps(plain_space(8, count))
    assert announced is not None
    assert len(asked) <= announced
    if width == 100:
        assert len(asked) == announced == sum(math.comb(6, size) for size in range(1, count + 1))


@pytest.mark.parametrize("number", range(8))
def test_a_beam_that_is_wide_enough_finds_the_best_there_is(number: int) -> None:
    for space in (plain_space(8, 3), table_space(3, merge_threshold=0.8)):
        widest = found_by(Beam(width=100, **FREE), space, table_of(number))
        best = found_by(Exhaustive(drops=8), space, table_of(number))
        assert widest.score == best.score


@pytest.mark.parametrize("number", range(20))
def test_up_to_two_blocks_a_wider_beam_is_never_worse(number: int) -> None:
    for count in (1, 2):
        score = [found_by(Beam(width=width), plain_space(10, count), table_of(number)).score for width in (1, 2, 3, 5, 8)]
        assert score == sorted(score)


@pytest.mark.parametrize("searcher", [Sequential(), Beam(), Beam(width=2)], ids=["sequential", "beam", "beam of two"])
@pytest.mark.parametrize("seed", range(5))
def test_where_losses_add_up_the_cheapest_blocks_go(searcher: Searcher, seed: int) -> None:
    costs = [Random(f"{seed} {block}").uniform(0, 10) for block in range(10)]
    found = found_by(searcher, plain_space(10, 4), lambda plan: 100.0 - sum(costs[block] for block in blocks_of(plan)))
    assert blocks_of(found.plan) == sorted(sorted(range(1, 9), key=lambda block: costs[block])[:4])


def test_randomness_plays_no_part() -> None:
    for searcher in (Sequential(), Beam()):
        one, other = (search_on_table(searcher, plain_space(8, 3), Table(rugged), seed=seed) for seed in (0, 1))
        assert one == other
