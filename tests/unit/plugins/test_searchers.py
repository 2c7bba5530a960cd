"""The searchers on tables of numbers."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import BestOf, Drop, Plan, Removal, Scores, SearchSpace
from pdtrim_core.search.space import search_space, two_sets, without_merges
from pdtrim_core.testing.contracts import Table, rugged, search_on_table, table_space
from pdtrim_core.testing.contracts.tables import score_of
from pdtrim_plugins.searchers import Annealing, Greedy, RandomChoice
from pdtrim_plugins.searchers.annealing import Cooling

if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

PAPER_STEPS = 36
"""Temperatures 15 * 0.85^i above 0.05."""


def wide_space(count: int = 4) -> SearchSpace:
    """Return a space over 12 blocks: 495 removals of four, so that a short walk seldom meets one twice."""
    scores = Scores(tuple(0.4 + 0.05 * block for block in range(12)), similarity=True)
    return search_space(scores, count, without_merges(two_sets(scores, count), scores))


def asked_by(searcher: Annealing | Greedy | RandomChoice, value: Callable[[Plan], float] = rugged, **settings: int) -> list[Plan]:
    _, asked = search_on_table(searcher, wide_space(), Table(value), **settings)
    return asked


def swapped(one: Plan, other: Plan) -> int:
    """Return how many elements of a plan's decode are not in another's."""
    return len(set(one.decode) - set(other.decode))


# Annealing


def test_annealing_with_the_papers_values_asks_for_the_first_removal_and_36_neighbours() -> None:
    asked = asked_by(Annealing())
    assert asked[0] == Plan.unified(wide_space().first)
    assert len(asked) == 1 + PAPER_STEPS


def test_annealing_measures_both_stages_alike() -> None:
    assert all(plan.prefill == plan.decode for plan in asked_by(Annealing()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"t0": 5.0},
        {"alpha": 0.5},
        {"t_min": 1.0},
        {"t0": 8.0, "alpha": 0.5, "t_min": 1.0},
        {"t0": 1.0, "alpha": 0.99, "t_min": 0.9},
        {"t0": 0.05, "t_min": 0.05},
        {"t0": 0.01},
    ],
)
def test_annealing_asks_once_for_each_temperature_above_the_last(options: dict[str, float]) -> None:
    searcher = Annealing.model_validate(options)
    steps, temperature = 0, searcher.t0
    while temperature > searcher.t_min:
        steps, temperature = steps + 1, temperature * searcher.alpha
    assert len(asked_by(searcher)) == 1 + steps
    assert searcher.steps(wide_space()) == 1 + steps


def test_each_option_of_annealing_changes_the_number_of_steps() -> None:
    counts = [len(asked_by(made)) for made in (Annealing(), Annealing(t0=5.0), Annealing(alpha=0.5), Annealing(t_min=1.0))]
    assert len(set(counts)) == len(counts)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("scale", [1.0, 0.1])
def test_annealing_walks_as_its_pseudo_code_does(seed: int, scale: float) -> None:
    """The paper's loop written out, with the same draws; on a flatter table more is accepted."""

    def value(plan: Plan) -> float:
        return scale * rugged(plan)

    assert asked_by(Annealing(), value, seed=seed) == _pseudo_code(wide_space(), value, _rng_of_search(seed))


@pytest.mark.parametrize("seed", range(8))
def test_annealing_walks_alike_when_candidates_are_measured_in_full(seed: int) -> None:
    cut_short = search_on_table(Annealing(), wide_space(), Table(rugged), seed=seed)
    in_full = search_on_table(Annealing(), wide_space(), Table(rugged, early_stop=False), seed=seed)
    assert cut_short == in_full


def test_other_seeds_walk_elsewhere() -> None:
    assert asked_by(Annealing(), seed=0) != asked_by(Annealing(), seed=1)


def test_annealing_goes_on_from_a_neighbour_that_is_as_good() -> None:
    asked = asked_by(Annealing(), lambda plan: 50.0)
    assert all(swapped(one, other) <= 1 for one, other in pairwise(asked))
    assert max(swapped(asked[0], plan) for plan in asked) > 1


def test_a_hot_walk_leaves_the_best_plan_and_a_cold_one_stays() -> None:
    """The first removal is worth 60 points and all others 50."""
    first = Plan.unified(wide_space().first)

    def value(plan: Plan) -> float:
        return 60.0 if plan == first else 50.0

    hot = asked_by(Annealing(t0=1e6, t_min=1e5), value)
    cold = asked_by(Annealing(t0=0.2, alpha=0.99), value)
    assert all(swapped(one, other) <= 1 for one, other in pairwise(hot))
    assert max(swapped(first, plan) for plan in hot) > 1
    # exp(-10 / 0.2) is 2e-22: no draw accepts that.
    assert max(swapped(first, plan) for plan in cold) == 1


def test_annealing_finds_the_best_removal_of_a_smooth_table() -> None:
    """Blocks 2 to 5 are harmless, each other one costs ten points; 495 removals, at most 37 of them measured."""

    def value(plan: Plan) -> float:
        return 100.0 - 10 * sum(element.blocks[0] not in (2, 3, 4, 5) for element in plan.decode)

    scores = Scores((0.5, 0.5, 0.9, 0.9, 0.9, 0.9, *(0.5,) * 6), similarity=True)
    space = search_space(scores, 4, without_merges(two_sets(scores, 4), scores))
    bad_start = replace(space, first=Removal(map(Drop, (0, 1, 10, 11))))
    found, asked = search_on_table(Annealing(t0=3.0), bad_start, Table(value))
    assert found is not None
    assert found.score > value(asked[0])


def test_annealing_swaps_merges_too() -> None:
    space = table_space(3, merge_threshold=0.8)
    _, asked = search_on_table(Annealing(), space, Table(rugged))
    sizes = {len(element.blocks) for plan in asked for element in plan.decode}
    assert sizes == {1, 2}
    assert {len(plan.decode) for plan in asked} == {3}


def _pseudo_code(space: SearchSpace, value: Callable[[Plan], float], rng: Random) -> list[Plan]:
    weight = dict(zip(space.elements, space.weights, strict=True))
    current = list(space.first)
    asked = [Plan.unified(Removal(current))]
    f_current = round(value(asked[0]), 4)
    temperature = 15.0
    while temperature > 0.05:
        current.sort(key=lambda element: element.blocks)
        others = [element for element in space.elements if element not in current]
        leaving = rng.choice(current)
        entering = rng.choices(others, [weight[element] for element in others])[0]
        neighbour = [element for element in current if element != leaving] + [entering]
        asked.append(Plan.unified(Removal(neighbour)))
        f_new = round(value(asked[-1]), 4)
        if math.exp(min(0.0, f_new - f_current) / temperature) >= 1 - rng.random():
            current, f_current = neighbour, f_new
        temperature *= 0.85
    return asked


def _rng_of_search(seed: int) -> Random:
    from pdtrim_core.testing.contracts.shared import rng_of

    return rng_of(seed)


# Greedy


def test_greedy_asks_for_the_blocks_of_highest_score_alone() -> None:
    assert asked_by(Greedy()) == [Plan.unified(Removal(map(Drop, (8, 9, 10, 11))))]


def test_greedy_breaks_ties_by_the_lower_block() -> None:
    scores = Scores((0.1, 0.9, 0.9, 0.9))
    space = search_space(scores, 2, without_merges(two_sets(scores, 2), scores))
    _, asked = search_on_table(Greedy(), space, Table(rugged))
    assert asked == [Plan.unified(Removal([Drop(1), Drop(2)]))]


def test_greedy_announces_one_measurement() -> None:
    assert Greedy().steps(wide_space()) == 1


# Random


@pytest.mark.parametrize("tries", [1, 37, 50])
def test_random_asks_for_as_many_removals_as_it_has_tries(tries: int) -> None:
    assert len(asked_by(RandomChoice(tries=tries))) == tries
    assert RandomChoice(tries=tries).steps(wide_space()) == tries


def test_random_measures_as_much_as_annealing_does_at_most() -> None:
    assert len(asked_by(RandomChoice())) == len(asked_by(Annealing()))


def test_random_takes_each_block_as_often_as_any_other() -> None:
    """600 times 4 of 12 blocks: each is expected 200 times, with a standard deviation of 11.5; five of those are allowed."""
    asked = asked_by(RandomChoice(tries=600))
    times = Counter(block for plan in asked for element in plan.decode for block in element.blocks)
    assert set(times) == set(range(12))
    assert all(abs(count - 200) < 5 * math.sqrt(600 * 1 / 3 * 2 / 3) for count in times.values())


def test_random_never_takes_a_block_twice_in_one_removal() -> None:
    assert all(len({element.blocks for element in plan.decode}) == 4 for plan in asked_by(RandomChoice(tries=200)))


def test_random_asks_for_everything_at_once() -> None:
    from random import Random

    asks = RandomChoice(tries=5).search(wide_space(), Random(0))
    first = next(asks)
    assert isinstance(first, BestOf)
    assert len(first.plans) == 5
    with pytest.raises(StopIteration):
        asks.send([score_of(1.0)] * 5)


def test_temperatures_at_the_ends_of_what_floats_can_be_have_a_number_of_steps() -> None:
    assert Cooling(15.0, 0.85, 0.05).step_count() == 36
    assert Cooling(1e308, 0.5, 1e-308).step_count() > 2000
    assert Cooling(1e-300, 0.5, 1e300).step_count() == 0
