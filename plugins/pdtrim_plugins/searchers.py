"""Searchers: the paper's simulated annealing, the one-shot greedy choice, and a random control."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterable
from random import Random

from pydantic import Field

from pdtrim_core import Answer, Ask, AtLeast, Drop, Plan, Removal, Searcher, SearchSpace, hookimpl


class Annealing(Searcher):
    """Simulated annealing over removals that all cut the same number of blocks."""

    name = "annealing"
    cites = "PDTrim, Sec. 3.2, Eq. 8-11 (arXiv:2509.04467)"

    t0: float = Field(15.0, gt=0, description="initial temperature T_0, in points")
    alpha: float = Field(0.85, gt=0, lt=1, description="factor by which the temperature falls each step")
    t_min: float = Field(0.05, gt=0, description="temperature at which the search stops, in points")

    def search(self, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, None]:
        """Walk from the first removal; a worse neighbour is taken with probability exp(-loss / T).

        The acceptance number is drawn before measuring, so that a candidate has a known floor to reach and measuring may
        stop early. The path is the same with and without that.
        """
        current = space.first
        value = yield Plan.unified(current)
        for step in range(self._step_count()):
            temperature = self.t0 * self.alpha**step
            neighbour = space.neighbour(current, rng)
            # exp(-(value - new) / T) >= u, solved for new; 1 - random() is never 0.
            floor = value + temperature * math.log(1 - rng.random())
            reached = yield AtLeast(Plan.unified(neighbour), floor)
            if reached is not None:
                current, value = neighbour, reached

    def steps(self, space: SearchSpace) -> int | None:
        """Return the first removal and one candidate a step."""
        del space
        return 1 + self._step_count()

    def _step_count(self) -> int:
        """Return the number of temperatures t0 * alpha^i above t_min: 36 for the paper's values."""
        return max(0, math.ceil(math.log(self.t_min / self.t0) / math.log(self.alpha)))


class Greedy(Searcher):
    """The blocks of highest score, in one shot."""

    name = "greedy"
    cites = "ShortGPT (arXiv:2403.03853)"

    def search(self, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, None]:
        """Ask for one plan."""
        del rng
        yield Plan.unified(Removal(Drop(block) for block in space.scores.ranking()[: space.count]))

    def steps(self, space: SearchSpace) -> int | None:
        """Return 1."""
        del space
        return 1


class RandomChoice(Searcher):
    """Removals drawn at random, each block as likely as any: the control that a search must beat."""

    name = "random"

    tries: int = Field(37, gt=0, description="number of removals to draw (37 is what annealing measures at most)")

    def search(self, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, None]:
        """Ask for all of them at once: they do not depend on each other."""
        blocks = range(space.block_count)
        yield [Plan.unified(Removal(Drop(block) for block in rng.sample(blocks, space.count))) for _ in range(self.tries)]

    def steps(self, space: SearchSpace) -> int | None:
        """Return the number of tries."""
        del space
        return self.tries


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searchers."""
    yield from (Annealing, Greedy, RandomChoice)
