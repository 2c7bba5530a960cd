"""A searcher: chooses what decode loses, by the scores of the plans that it measures."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from pydantic import Field

from pdtrim_core.api import Requests, Searcher, SearchSpace, hookimpl, measure


class Example(Searcher):
    """Climbs: tries neighbours of the best removal so far, and moves to one that is no worse."""

    name = "example"

    tries: int = Field(10, gt=0, description="neighbours to try")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Measure the removal that block scores suggest, then neighbours; the best plan that was measured is taken."""
        best = space.first
        score = yield from measure(space.plan_of(best))
        for _ in range(self.tries):
            trial = space.neighbour(best, rng)
            # None where the trial does not reach the best so far: measuring it stops as soon as that is clear.
            reached = yield from measure(space.plan_of(trial), at_least=score, than=score)
            if reached is not None:
                best, score = trial, reached

    def steps(self, space: SearchSpace) -> int | None:
        """Return about how many measurements a search takes, for the progress bar."""
        del space
        return self.tries + 1


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searchers of this package."""
    yield Example
