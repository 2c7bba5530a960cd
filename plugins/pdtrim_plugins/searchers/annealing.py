"""Simulated annealing over removals that all cut the same number of blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import ClassVar, NamedTuple, TypeVar

from pydantic import Field

from pdtrim_core.api import Removal, Requests, Searcher, SearchSpace, measure

T = TypeVar("T")


class Cooling(NamedTuple):
    """The temperatures t0 * alpha^i above t_min, in points: 36 of them for the paper's values."""

    t0: float
    alpha: float
    t_min: float

    def step_count(self) -> int:
        """Return how many temperatures there are."""
        ratio = self.t_min / self.t0
        # The ratio of numbers at either end of what floats can be is none that has a logarithm.
        fall = math.log(ratio) if 0 < ratio < math.inf else math.log(self.t_min) - math.log(self.t0)
        return max(0, math.ceil(fall / math.log(self.alpha)))

    def temperatures(self) -> Iterator[float]:
        """Yield them, falling."""
        return (self.t0 * self.alpha**step for step in range(self.step_count()))


def walk(space: SearchSpace, start: Removal, cooling: Cooling, rng: Random) -> Requests[None]:
    """Walk from a removal; a worse neighbour is taken with probability exp(-loss / T).

    The acceptance number is drawn before measuring, so that a candidate has a known floor to reach and measuring may
    stop early. The path is the same with and without that.
    """
    current = start
    value = yield from measure(space.plan_of(current))
    for temperature in cooling.temperatures():
        neighbour = space.neighbour(current, rng)
        # exp(-(value - new) / T) >= u, solved for new; 1 - random() is never 0.
        floor = value + temperature * math.log(1 - rng.random())
        later = map(space.plan_of, if_refused(partial(space.neighbour, current), rng))
        reached = yield from measure(
            space.plan_of(neighbour), at_least=floor, than=value, temperature=temperature, otherwise=later
        )
        if reached is not None:
            current, value = neighbour, reached


def if_refused(propose: Callable[[Random], T], rng: Random) -> Iterator[T]:
    """Yield what a walk proposes next, step by step, as long as it stays where it is; `rng` is left as it is."""
    ahead = Random()  # noqa: S311 - the state of a reproducible one
    ahead.setstate(rng.getstate())
    while True:
        yield propose(ahead)
        ahead.random()  # the acceptance number of that step


class Annealing(Searcher):
    """Simulated annealing over removals that all cut the same number of blocks."""

    name = "annealing"
    parts: ClassVar[bool] = True
    cites = "PDTrim, Sec. 3.2, Eq. 8-11 (arXiv:2509.04467)"

    t0: float = Field(15.0, gt=0, description="initial temperature T_0, in points")
    alpha: float = Field(0.85, gt=0, lt=1, description="factor by which the temperature falls each step")
    t_min: float = Field(0.05, gt=0, description="temperature at which the search stops, in points")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Walk from the first removal (see `walk`)."""
        yield from walk(space, space.first, Cooling(self.t0, self.alpha, self.t_min), rng)

    def steps(self, space: SearchSpace) -> int | None:
        """Return the first removal and one candidate a step."""
        del space
        return 1 + Cooling(self.t0, self.alpha, self.t_min).step_count()


class Restarts(Searcher):
    """Simulated annealing several times over: from the first removal, then from others that were shuffled out of it.

    A departure from the paper, which walks once: one cold walk may end in a valley, and its seed decides which.
    """

    name = "restarts"
    parts: ClassVar[bool] = True
    cites = "PDTrim, Sec. 3.2, Eq. 8-11 (arXiv:2509.04467), each walk"

    chains: int = Field(4, gt=0, description="number of walks (the paper: 1)")
    t0: float = Field(15.0, gt=0, description="initial temperature T_0 of each walk, in points")
    alpha: float = Field(0.85, gt=0, lt=1, description="factor by which the temperature falls each step")
    t_min: float = Field(0.05, gt=0, description="temperature at which a walk stops, in points")

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Walk from the first removal, then from removals that are `space.count` random swaps away from it."""
        cooling = Cooling(self.t0, self.alpha, self.t_min)
        yield from walk(space, space.first, cooling, rng)
        for _ in range(self.chains - 1):
            start = space.first
            for _ in range(space.count):
                start = space.neighbour(start, rng)
            yield from walk(space, start, cooling, rng)

    def steps(self, space: SearchSpace) -> int | None:
        """Return the start and one candidate a step, for each walk; removals met again cost nothing."""
        del space
        return self.chains * (1 + Cooling(self.t0, self.alpha, self.t_min).step_count())
