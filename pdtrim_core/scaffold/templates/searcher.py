"""A searcher: yields plans, and is sent their values in points."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from random import Random

from pydantic import Field

from pdtrim_core.api import AtLeast, Plan, Request, Result, Searcher, SearchSpace, hookimpl


class Example(Searcher):
    """Climbs: tries neighbours of the best removal so far, and moves to one that is no worse."""

    name = "example"

    tries: int = Field(10, gt=0, description="neighbours to try")

    def search(self, space: SearchSpace, rng: Random) -> Generator[Request, Result, None]:
        """Yield the removal that scores suggest, then neighbours; the best plan that was measured is taken."""
        best = space.first
        score = yield Plan.unified(best)
        for _ in range(self.tries):
            trial = space.neighbour(best, rng)
            # None where the trial does not reach what there is: measuring it stops as soon as that is clear.
            value = yield AtLeast(Plan.unified(trial), score)
            if value is not None:
                best, score = trial, value

    def steps(self, space: SearchSpace) -> int | None:
        """Return about how many measurements a search takes, for the progress bar."""
        del space
        return self.tries + 1


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searchers of this package."""
    yield Example
