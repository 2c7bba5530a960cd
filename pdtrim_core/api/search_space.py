"""What a searcher may choose from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from random import Random

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.data.scores import Scores
from pdtrim_core.plan.elements import Element, Removal, Stage
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class SearchSpace:
    """What a searcher may choose from: elements with weights, the number to remove, and where to start.

    `elements` partition the blocks, so that no choice of them overlaps. `weights` (one an element) are the chances of
    PDTrim, Eq. 8 and 9. `count` is how many blocks decode loses; `costs` gives the cost of a plan. `plan_of` makes the plan by
    which a removal from decode is measured.
    """

    count: int
    elements: tuple[Element, ...]
    weights: tuple[float, ...]
    first: Removal
    scores: Scores
    costs: CostModel
    plan_of: Callable[[Removal], Plan] = Plan.unified

    @property
    def block_count(self) -> int:
        """The number of blocks of the dense model."""
        return self.costs.block_count

    @cached_property
    def _weight_of(self) -> dict[Element, float]:
        return dict(zip(self.elements, self.weights, strict=True))

    def neighbour(self, removal: Removal, rng: Random) -> Removal:
        """Return the removal with one random element swapped for another, drawn by weight (PDTrim, Eq. 8 and 9).

        Returns the same removal where there is nothing to swap.
        """
        outside = [element for element in self.elements if element not in removal]
        if not outside or not len(removal):
            return removal
        leaving = rng.choice(removal.elements)
        weights = [self._weight_of[element] for element in outside]
        entering = rng.choices(outside, weights if sum(weights) > 0 else None)[0]
        return removal.without(leaving).with_(entering)

    def cost(self, plan: Plan, stage: Stage) -> float:
        """Return a stage's cost as a share of the dense model's: FLOPs of prefill, weight bytes a token of decode."""
        return self.costs.cost(plan, stage)

    def problems(self, plan: Plan) -> list[str]:
        """Return why a plan may not be proposed by a search over this space."""
        removed = plan.decode.blocks_removed
        if removed != self.count:
            return [f"its decode removes {removed} blocks, not {self.count}"]
        return []
