"""An objective: values a plan, item by item."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import ClassVar

from pydantic import Field

from pdtrim_core.api import Item, Objective, Staged, hookimpl


class Example(Objective):
    """Probability that the model gives the right choice among an item's choices."""

    name = "example"
    unit: ClassVar[str] = "probability"
    best_item: ClassVar[float | None] = 1.0

    temperature: float = Field(1.0, gt=0, description="number that log-probabilities are divided by")

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        """Return one value an item, whatever other items are beside it."""
        return [self._right(item, sums) for item, sums in zip(items, staged.loglikelihoods(items), strict=True)]

    def _right(self, item: Item, sums: Sequence[float]) -> float:
        top = max(sums)
        weights = [math.exp((total - top) / self.temperature) for total in sums]
        return weights[item.answer] / sum(weights)

    def score(self, mean: float) -> float:
        """Return the score of a mean over items, 0 to 100; higher is better."""
        return 100 * mean

    def problems(self, items: Sequence[Item]) -> list[str]:
        """Return why these items cannot be measured."""
        single = sum(len(item.choices) < 2 for item in items)
        return [f"{single} of {len(items)} items have one choice only"] if single else []


@hookimpl
def pdtrim_objectives() -> Iterable[type[Objective]]:
    """Yield the objectives of this package."""
    yield Example
