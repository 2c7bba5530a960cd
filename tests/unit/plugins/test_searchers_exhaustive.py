"""The search that measures everything, and what it says of the others."""

from __future__ import annotations

import math
from itertools import combinations
from random import Random

import pytest

from pdtrim_core.api import BestOf, Drop, Element, Merge, PdtrimError, Plan, Removal, Scores, Searcher, SearchSpace
from pdtrim_core.search.space import search_space, two_sets, without_merges
from pdtrim_core.testing.contracts import Table, rugged, search_on_table, table_space
from pdtrim_core.testing.contracts.tables import score_of
from pdtrim_plugins.searchers import Annealing, Beam, Exhaustive, Greedy, RandomChoice, Restarts, Sequential

FREE = {"protect_first": 0, "protect_last": 0}


def rising_space(blocks: int, count: int) -> SearchSpace:
    """Return a space without merges whose last blocks have the highest scores."""
    scores = Scores(tuple(0.4 + 0.01 * block for block in range(blocks)), similarity=True)
    return search_space(scores, count, without_merges(two_sets(scores, count), scores))


def merging_space(count: int) -> SearchSpace:
    """Return a space over ten blocks with the merges 1+2 and 5+6; block 9 has the highest score, then 8, 7, 4, 3 and 0."""
    block = (0.3, 0.2, 0.2, 0.4, 0.5, 0.2, 0.2, 0.7, 0.8, 0.9)
    pair = tuple(0.99 if first in {1, 5} else 0.1 for first in range(9))
    scores = Scores(block, pair, similarity=True)
    return search_space(scores, count, two_sets(scores, count))


def asked_by(searcher: Searcher, space: SearchSpace) -> list[Plan]:
    return search_on_table(searcher, space, Table(rugged))[1]


def best_of(searcher: Searcher, space: SearchSpace, table: int) -> float:
    """Return the points that a searcher reaches on one of many tables without rhyme or reason."""

    def value(plan: Plan) -> float:
        return Random(f"{table} {plan}").uniform(0, 100)

    found, _ = search_on_table(searcher, space, Table(value))
    assert found is not None
    return found.score


def elements_of(asked: list[Plan]) -> set[str]:
    return {str(element) for plan in asked for element in plan.decode}


def test_it_asks_for_every_combination_of_the_merges_and_the_five_best_drops_once() -> None:
    asked = asked_by(Exhaustive(), merging_space(4))
    elements: list[Element] = [Merge(1, 2), Merge(5, 6), *map(Drop, (3, 4, 7, 8, 9))]
    expected = {Plan.unified(Removal(chosen)) for chosen in combinations(elements, 4)}
    assert len(asked) == len(expected) == math.comb(7, 4)
    assert set(asked) == expected


@pytest.mark.parametrize(
    ("drops", "elements"),
    [
        (0, {"1+2", "5+6", "9"}),
        (1, {"1+2", "5+6", "9"}),
        (2, {"1+2", "5+6", "9", "8"}),
        (6, {"1+2", "5+6", "9", "8", "7", "4", "3", "0"}),
        (99, {"1+2", "5+6", "9", "8", "7", "4", "3", "0"}),
    ],
)
def test_the_number_of_drops_can_be_chosen_but_is_never_too_small_for_the_count(drops: int, elements: set[str]) -> None:
    assert elements_of(asked_by(Exhaustive(drops=drops), merging_space(3))) == elements


@pytest.mark.parametrize(("count", "combination_count"), [(0, 1), (1, 5), (5, 1), (7, 1), (11, 1)])
def test_where_more_blocks_go_than_there_are_candidates_the_best_drops_fill_up(count: int, combination_count: int) -> None:
    space = rising_space(12, count)
    asked = asked_by(Exhaustive(), space)
    assert len(asked) == combination_count
    assert Exhaustive().steps(space) == combination_count
    if count >= 5:
        assert asked == [Plan.unified(Removal(map(Drop, range(12 - count, 12))))]


def test_it_asks_for_lists_of_plans_that_are_measured_side_by_side() -> None:
    asks = Exhaustive(drops=12).search(rising_space(12, 4), Random(0))
    sizes = []
    ask = next(asks)
    while True:
        assert isinstance(ask, BestOf)
        sizes.append(len(ask.plans))
        try:
            ask = asks.send([score_of(1.0)] * len(ask.plans))
        except StopIteration:
            break
    assert sizes == [64] + [64 + 4] * 6 + [495 - 7 * 64 + 4]  # the best so far compete again


def test_ties_go_to_the_lower_blocks() -> None:
    found, _ = search_on_table(Exhaustive(drops=12), rising_space(12, 4), Table(lambda plan: 50.0))
    assert found is not None
    assert found.plan == Plan.unified(Removal(map(Drop, (0, 1, 2, 3))))


def test_too_many_combinations_are_refused_before_anything_is_measured() -> None:
    space = rising_space(15, 5)
    asked: list[Plan] = []
    with pytest.raises(PdtrimError) as error:
        search_on_table(Exhaustive(drops=15), space, Table(lambda plan: asked.append(plan) or 0.0))  # type: ignore[func-returns-value]
    assert str(error.value) == (
        "searcher 'exhaustive' would measure 3003 removals (5 of 15 elements), above its limit of 2000: lower "
        "searcher.drops, raise searcher.limit, or take a searcher that measures fewer, such as annealing"
    )
    assert asked == []
    assert Exhaustive(drops=15).steps(space) == 3003


def test_the_limit_itself_is_allowed() -> None:
    space = rising_space(12, 4)
    assert len(set(asked_by(Exhaustive(drops=12, limit=495), space))) == 495
    with pytest.raises(PdtrimError, match="above its limit of 494"):
        asked_by(Exhaustive(drops=12, limit=494), space)


@pytest.mark.parametrize("table", range(6))
@pytest.mark.parametrize(
    "other",
    [Annealing(), Greedy(), RandomChoice(), Sequential(), Sequential(**FREE), Beam(), Beam(**FREE), Restarts()],
    ids=lambda searcher: str(searcher.name),
)
def test_no_searcher_finds_better_among_the_same_elements(other: Searcher, table: int) -> None:
    for count in (0, 1, 3, 4):
        space = rising_space(8, count)
        assert best_of(Exhaustive(drops=8), space, table) >= best_of(other, space, table)


@pytest.mark.parametrize("table", range(6))
@pytest.mark.parametrize(
    "other", [Annealing(), Sequential(**FREE), Beam(**FREE), Restarts()], ids=lambda searcher: str(searcher.name)
)
def test_no_searcher_finds_better_among_the_same_elements_with_merges(other: Searcher, table: int) -> None:
    space = merging_space(3)
    assert best_of(Exhaustive(drops=10), space, table) >= best_of(other, space, table)


@pytest.mark.parametrize("table", range(6))
@pytest.mark.parametrize("merge_threshold", [None, 0.8])
def test_a_long_annealing_finds_the_best_there_is(table: int, merge_threshold: float | None) -> None:
    """At most 20 removals and 757 steps, of which some 200 are hot enough to accept anything every second time or so."""
    space = table_space(3, merge_threshold=merge_threshold)
    assert best_of(Annealing(t0=100.0, alpha=0.99), space, table) == best_of(Exhaustive(drops=6), space, table)
