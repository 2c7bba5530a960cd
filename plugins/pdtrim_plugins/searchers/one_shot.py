"""Removals chosen before anything is measured."""

from __future__ import annotations

from random import Random

from pydantic import Field

from pdtrim_core.api import Drop, Removal, Requests, Searcher, SearchSpace, best_of, measure

KEPT = 4
"""The best draws, at least so many, are measured whole, so that fresh items have something to decide between."""


class Greedy(Searcher):
    """The blocks of highest score, in one shot."""

    name = "greedy"
    cites = "ShortGPT (arXiv:2403.03853)"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Ask for one plan."""
        del rng
        yield from measure(space.plan_of(Removal(Drop(block) for block in space.scores.ranking()[: space.count])))

    def steps(self, space: SearchSpace) -> int | None:
        """Return 1."""
        del space
        return 1


class RandomChoice(Searcher):
    """Removals drawn at random, each block as likely as any: the control that a search must beat."""

    name = "random"

    tries: int = Field(37, gt=0, description="number of removals to draw (37 is what annealing measures at most)")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Ask for all of them at once: they do not depend on each other."""
        blocks = range(space.block_count)
        removals = [Removal(Drop(block) for block in rng.sample(blocks, space.count)) for _ in range(self.tries)]
        yield from best_of([space.plan_of(removal) for removal in removals], KEPT)

    def steps(self, space: SearchSpace) -> int | None:
        """Return the number of tries."""
        del space
        return self.tries
