"""Several annealing walks in one search."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import Plan, Scores, SearchSpace
from pdtrim_core.search.space import search_space, two_sets, without_merges
from pdtrim_core.testing.contracts import Table, rugged, search_on_table, table_space
from pdtrim_core.testing.contracts.tables import score_of
from pdtrim_plugins.searchers import Annealing, Restarts

if TYPE_CHECKING:
    from collections.abc import Callable

PAPER_WALK = 37
"""The start of a walk and its 36 steps."""


def wide_space(count: int = 4) -> SearchSpace:
    scores = Scores(tuple(0.4 + 0.05 * block for block in range(12)), similarity=True)
    return search_space(scores, count, without_merges(two_sets(scores, count), scores))


def asked_by(searcher: Annealing | Restarts, value: Callable[[Plan], float] = rugged, *, seed: int = 0) -> list[Plan]:
    return search_on_table(searcher, wide_space(), Table(value), seed=seed)[1]


def swapped(one: Plan, other: Plan) -> int:
    """Return how many elements of a plan's decode are not in another's."""
    return len(set(one.decode) - set(other.decode))


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("options", [{}, {"t0": 40.0}, {"alpha": 0.9}, {"t_min": 2.0}])
def test_one_chain_is_annealing(seed: int, options: dict[str, float]) -> None:
    one = Restarts.model_validate({"chains": 1, **options})
    for space in (wide_space(), wide_space(0), wide_space(11), table_space(3, merge_threshold=0.8)):
        annealing = search_on_table(Annealing.model_validate(options), space, Table(rugged), seed=seed)
        assert search_on_table(one, space, Table(rugged), seed=seed) == annealing
        assert one.steps(space) == Annealing.model_validate(options).steps(space) == len(annealing[1])


@pytest.mark.parametrize("chains", [1, 2, 3, 4, 6])
def test_each_chain_is_a_whole_walk(chains: int) -> None:
    assert len(asked_by(Restarts(chains=chains))) == chains * PAPER_WALK
    assert Restarts(chains=chains).steps(wide_space()) == chains * PAPER_WALK


def test_there_are_four_chains_unless_told_otherwise() -> None:
    assert asked_by(Restarts()) == asked_by(Restarts(chains=4))


@pytest.mark.parametrize("seed", range(8))
def test_another_chain_changes_nothing_before_it_so_that_it_never_makes_the_result_worse(seed: int) -> None:
    results = [search_on_table(Restarts(chains=chains), wide_space(), Table(rugged), seed=seed) for chains in (1, 2, 3, 4)]
    for (found, asked), (next_found, next_asked) in pairwise(results):
        assert found is not None
        assert next_found is not None
        assert next_asked[: len(asked)] == asked
        assert next_found.score >= found.score


@pytest.mark.parametrize("seed", range(8))
def test_later_chains_start_elsewhere_at_most_as_many_swaps_away_as_blocks_go(seed: int) -> None:
    first, *others = asked_by(Restarts(chains=8), seed=seed)[::PAPER_WALK]
    assert first == Plan.unified(wide_space().first)
    assert len(others) == 7
    assert len({first, *others}) > 4
    assert max(swapped(first, start) for start in others) > 1
    assert all(len(start.decode) == 4 for start in others)


@pytest.mark.parametrize("count", [1, 2])
def test_a_start_is_no_more_swaps_away_than_blocks_go(count: int) -> None:
    _, asked = search_on_table(Restarts(chains=20), wide_space(count), Table(rugged))
    starts = asked[::PAPER_WALK]
    assert {swapped(starts[0], start) for start in starts} <= set(range(count + 1))
    assert max(swapped(starts[0], start) for start in starts) == count


def test_a_later_chain_leaves_the_valley_of_the_first() -> None:
    """The first removal is worth 60 points, its neighbours 10, most others 50 and those without its blocks 100."""
    first = Plan.unified(wide_space().first)

    def value(plan: Plan) -> float:
        return {0: 60.0, 1: 10.0, 2: 50.0, 3: 80.0, 4: 100.0}[swapped(first, plan)]

    def best(searcher: Annealing | Restarts) -> float:
        found, _ = search_on_table(searcher, wide_space(), Table(value))
        assert found is not None
        return found.score

    # exp(-50 / 1) is 2e-22: no walk leaves the first removal.
    assert best(Annealing(t0=1.0)) == 60.0
    assert best(Restarts(t0=1.0, chains=8)) > 60.0


@pytest.mark.parametrize("seed", range(8))
def test_every_chain_obeys_the_law_of_acceptance(seed: int) -> None:
    """Each chain, walked again by annealing from its start with the draws as they stand there."""
    from pdtrim_core.testing.contracts.shared import rng_of

    asked = asked_by(Restarts(chains=3), seed=seed)
    rng: Random = rng_of(seed)
    expected: list[Plan] = []
    space = wide_space()
    for chain in range(3):
        start = space.first
        for _ in range(space.count if chain else 0):
            start = space.neighbour(start, rng)
        from_there = replace(space, first=start)
        asks = Annealing().search(from_there, rng)
        ask = next(asks, None)
        while ask is not None:
            plan, floor = (ask, None) if isinstance(ask, Plan) else (ask.plan, ask.floor)  # type: ignore[union-attr]
            assert isinstance(plan, Plan)
            expected.append(plan)
            score = round(rugged(plan), 4)
            try:
                ask = asks.send(score_of(score) if floor is None or score >= floor else None)
            except StopIteration:
                break
    assert asked == expected


def test_each_option_changes_the_search() -> None:
    counts = [
        len(asked_by(made))
        for made in (Restarts(), Restarts(chains=3), Restarts(t0=5.0), Restarts(alpha=0.5), Restarts(t_min=1.0))
    ]
    assert len(set(counts)) == len(counts)


def test_early_stopping_changes_nothing() -> None:
    cut_short = search_on_table(Restarts(), wide_space(), Table(rugged))
    assert cut_short == search_on_table(Restarts(), wide_space(), Table(rugged, early_stop=False))
