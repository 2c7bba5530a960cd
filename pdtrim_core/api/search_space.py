"""What a searcher may choose from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from statistics import fmean

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.elements import PARTS, Element, Removal, Stage
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class SearchSpace:
    """What a searcher may choose from: elements with weights, the number to remove, and where to start.

    `elements` partition the blocks, so that no choice of them overlaps. `weights` (one an element) are the chances of
    PDTrim, Eq. 8 and 9. `count` is how many blocks decode loses; `costs` gives the cost of a plan. `plan_of` makes the plan by
    which a removal from decode is measured.

    With `parts` the elements drop the attention or the MLP of a block, and `count` is a budget of bytes: a removal is of full
    size where decode reads as many bytes of weights less as `count` average blocks have, give or take half of the smaller part of
    a block.
    """

    count: int
    elements: tuple[Element, ...]
    weights: tuple[float, ...]
    first: Removal
    scores: Scores
    costs: CostModel
    plan_of: Callable[[Removal], Plan] = Plan.unified
    parts: bool = False

    @property
    def block_count(self) -> int:
        """The number of blocks of the dense model."""
        return self.costs.block_count

    @cached_property
    def _weight_of(self) -> dict[Element, float]:
        return dict(zip(self.elements, self.weights, strict=True))

    def neighbour(self, removal: Removal, rng: Random) -> Removal:
        """Return the removal with one random element swapped for another, drawn by weight (PDTrim, Eq. 8 and 9).

        Returns the same removal where there is nothing to swap. With `parts`, as many others go out and come in as it takes to
        have full size again.
        """
        outside = [element for element in self.elements if element not in removal]
        if not outside or not len(removal):
            return removal
        if self.parts:
            return self._part_neighbour(removal, self._drawn(outside, rng), rng)
        leaving = rng.choice(removal.elements)
        entering = self._drawn(outside, rng)
        return removal.without(leaving).with_(entering)

    def _drawn(self, elements: Sequence[Element], rng: Random) -> Element:
        """Return a random element, drawn by weight."""
        weights = [self._weight_of[element] for element in elements]
        return rng.choices(elements, weights if sum(weights) > 0 else None)[0]

    def _part_neighbour(self, removal: Removal, entering: Element, rng: Random) -> Removal:
        leaving = list(removal.elements)
        rng.shuffle(leaving)
        found = removal.without(leaving.pop()).with_(entering)
        while leaving and not self.fits(found):
            found = found.without(leaving.pop())
        others, order = [element for element in self.elements if element not in found and element not in removal], []
        while others:
            order.append(self._drawn(others, rng))
            others.remove(order[-1])
        found = self.filled(found, (*order, *rng.sample(removal.elements, len(removal))))
        return found if self.is_full(found) else removal

    def size(self, removal: Removal) -> float:
        """Return how much a removal takes from decode, in blocks; with `parts` by the bytes of weights, in average blocks."""
        if not self.parts:
            return removal.blocks_removed
        saved = self._sizes.decode_bytes(Plan()) - self._sizes.decode_bytes(Plan(decode=removal))
        return saved / self._sizes.bytes_per_number / self._average

    def is_full(self, removal: Removal) -> bool:
        """Tell whether a removal has the size that is asked for."""
        return abs(self.size(removal) - self.count) <= self._slack

    def fits(self, removal: Removal) -> bool:
        """Tell whether a removal is no larger than what is asked for, and leaves decode attention."""
        attends = any("attention" not in removal.lost_at(block) for block in range(self.block_count))
        return attends and self.size(removal) <= self.count + self._slack

    def filled(self, removal: Removal, order: Iterable[Element]) -> Removal:
        """Return a removal with elements added in order, those that fit, until it is of full size or there are no more."""
        gone = {place for element in removal for place in element.places}
        for element in order:
            if self.is_full(removal):
                break
            if gone.isdisjoint(element.places) and self.fits(grown := removal.with_(element)):
                removal = grown
                gone |= element.places
        return removal

    @property
    def _sizes(self) -> ModelSizes:
        if self.costs.sizes is None:
            raise PdtrimError("this space was made without the model's sizes, so that parts of blocks have no bytes")
        return self.costs.sizes

    @cached_property
    def _average(self) -> float:
        return fmean(block.active for block in self._sizes.blocks)

    @cached_property
    def _slack(self) -> float:
        """How far a removal may be from the size that is asked for, in average blocks."""
        if not self.parts:
            return 0.0
        return max(min(block.of_part(part)[1] for part in PARTS) for block in self._sizes.blocks) / self._average / 2

    def cost(self, plan: Plan, stage: Stage) -> float:
        """Return a stage's cost as a share of the dense model's: FLOPs of prefill, weight bytes a token of decode."""
        return self.costs.cost(plan, stage)

    def problems(self, plan: Plan) -> list[str]:
        """Return why a plan may not be proposed by a search over this space."""
        if self.is_full(plan.decode):
            return []
        if self.parts:
            return [f"its decode reads as many bytes less as {self.size(plan.decode):.2f} blocks have, not as {self.count}"]
        return [f"its decode removes {plan.decode.blocks_removed} blocks, not {self.count}"]
