"""Broken components are caught by the searcher contract, each by the test that is meant for it."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import AtLeast, Drop, Plan, Removal, Requests, Searcher, SearchSpace, StageFacts, measure
from pdtrim_core.testing import (
    SearcherContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]
    from random import Random


class Shuffle(Searcher):
    """Some removals at random."""

    name = "shuffle"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        for _ in range(3):
            yield Plan.unified(Removal(rng.sample(_drops(space), space.count)))


def _drops(space: SearchSpace) -> list[Drop]:
    return [Drop(block) for block in range(space.block_count)]


class RemovesOneMore(Searcher):
    """Goes one block too far."""

    name = "one-more"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        yield Plan.unified(Removal(_drops(space)[: space.count + 1]))


class SpareThePrefill(Searcher):
    """Takes what prefill loses for what is asked."""

    name = "spare-the-prefill"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        yield Plan()


class ForgetsItsCeiling(Shuffle):
    """Says that prefill is cheap, and takes whatever comes."""

    name = "forgets-its-ceiling"

    @property
    def prefill_ceiling(self) -> float:
        return 0.5


class RefusesOnlyBefore(Shuffle):
    """Calls everything out of reach, and searches all the same."""

    name = "refuses-only-before"

    def problems(self, facts: StageFacts) -> list[str]:
        return ["out of reach"]


class UsesGlobalRandom(Searcher):
    """Draws from the module `random`."""

    name = "global-random"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        yield Plan.unified(Removal(random.sample(_drops(space), space.count)))


class Unseeded(Searcher):
    """Makes a generator of its own."""

    name = "unseeded"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        own = random.Random()
        for _ in range(20):
            yield Plan.unified(Removal(own.sample(_drops(space), space.count)))


class SilentSearcher(Searcher):
    """Asks for nothing."""

    name = "silent"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        yield from ()


class TakesNoneForANumber(Searcher):
    """Adds up what it is sent."""

    name = "none-for-a-number"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        value = yield from measure(Plan.unified(space.first))
        other = yield from measure(Plan.unified(space.neighbour(space.first, rng)), at_least=99.9)
        assert value + other >= 0  # type: ignore[operator]


class RemembersSearches(Searcher):
    """Goes on where its last search, in another run, ended."""

    name = "remembers-searches"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        SEARCHES.append(rng)
        yield Plan.unified(space.first)
        for _ in range(len(SEARCHES)):
            yield AtLeast(Plan.unified(space.neighbour(space.first, rng)), 99.9)


SEARCHES: list[Random] = []


class NeverEnds(Searcher):
    """Waits for a value that does not come."""

    name = "never-ends"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        while (yield from measure(Plan.unified(space.first))) <= 100:
            pass


def test_a_good_searcher_passes_every_test(failing: Failing) -> None:
    assert failing(SearcherContract, Shuffle) == set()


class GoesOnWhenStopped(Searcher):
    """Has something to say when it is stopped."""

    name = "goes-on"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        for _ in range(3):
            try:
                yield Plan.unified(space.neighbour(space.first, rng))
            except GeneratorExit:
                yield Plan.unified(space.first)


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (GoesOnWhenStopped, "test_stopped_at_any_time_a_run_has_a_plan_of_full_size"),
        (RemovesOneMore, "test_every_plan_removes_the_blocks_asked_for"),
        (SpareThePrefill, "test_every_plan_removes_the_blocks_asked_for"),
        (ForgetsItsCeiling, "test_its_ceiling_on_prefill_holds"),
        (RefusesOnlyBefore, "test_what_it_calls_out_of_reach_is_refused"),
        (UsesGlobalRandom, "test_the_same_seed_gives_the_same_search"),
        (Unseeded, "test_the_same_seed_gives_the_same_search"),
        (SilentSearcher, "test_the_best_plan_is_no_worse_than_the_first"),
        (TakesNoneForANumber, "test_it_copes_with_candidates_that_miss_their_floor"),
        (RemembersSearches, "test_early_stopping_changes_nothing"),
        (NeverEnds, "test_every_plan_removes_the_blocks_asked_for"),
    ],
)
def test_a_broken_searcher_is_caught(component: type[Searcher], test: str, failing: Failing) -> None:
    assert failing(SearcherContract, component, test) == {test}
