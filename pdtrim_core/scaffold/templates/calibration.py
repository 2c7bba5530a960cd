"""A calibration source: the items that a run measures on, and the held-out ones."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from pydantic import Field

from pdtrim_core.api import CalibrationSource, Sample, hookimpl


class Example(CalibrationSource):
    """Sums of two numbers, with the right result and wrong ones to choose from."""

    name = "example"

    largest: int = Field(50, gt=4, description="largest number to add")
    choices: int = Field(4, gt=1, le=9, description="results to choose from")

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        """Return so many samples drawn with `rng`, no two alike; fewer where there are no more."""
        pairs = [(one, other) for one in range(self.largest) for other in range(self.largest)]
        rng.shuffle(pairs)
        return [self._sum(one, other, rng) for one, other in pairs[:count]]

    def _sum(self, one: int, other: int, rng: Random) -> Sample:
        right = one + other
        results = [right, *rng.sample([right + gap for gap in range(-5, 6) if gap and right + gap >= 0], self.choices - 1)]
        rng.shuffle(results)
        return Sample(f"{one} + {other} =", tuple(f" {result}" for result in results), results.index(right), f"{one}+{other}")


@hookimpl
def pdtrim_calibrations() -> Iterable[type[CalibrationSource]]:
    """Yield the calibration sources of this package."""
    yield Example
