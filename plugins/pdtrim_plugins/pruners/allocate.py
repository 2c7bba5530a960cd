"""Allocation: how much each block gives, by what each step was measured to cost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from pdtrim_core.api import Drop, Element, Pruned, Pruner, Removal, Shrink
from pdtrim_plugins.pruners.flap import PARTS, Flap, Part, compensated, places_of, unit_scores, units_of

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

QUANTA = 2000
"""Parts that the budget is counted in."""


class Choice(NamedTuple):
    """One way to take weights from a block: its elements, the weights that they hold, and the divergence that they cost."""

    elements: tuple[Element, ...]
    weights: int
    cost: float


class Allocate(Pruner):
    """Narrows and drops blocks so that the divergences which the steps were measured at sum to the least.

    Each block may be dropped, or its MLP and its attention narrowed to one of a few widths. Every such step is measured alone:
    KL to the dense model along the calibration items. A knapsack then takes at most one width of each part of each block, or the
    block as a whole, so that the weights sum to the budget and the divergences to the least: they nearly add up as long as each
    is small. Which heads and channels go at a width, and the bias that makes up for their mean output, are FLAP's.
    """

    name = "allocate"
    cites = "the widths are FLAP's units (arXiv:2312.11983); the allocation is ours"

    shares: tuple[float, ...] = Field(
        (0.125, 0.25, 0.375, 0.5, 0.625, 0.75), description="shares of a part's heads or channels that may go"
    )
    drops: bool = Field(default=True, description="whether blocks may go as a whole")
    tokens: int = Field(128, ge=1, description="tokens of a window of the statistics that heads and channels are chosen by")

    @property
    def narrows(self) -> frozenset[Part]:
        """Both parts may lose units."""
        return frozenset(PARTS)

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why these shares are none, or the budget is beyond them."""
        wrong = [share for share in self.shares if not 0 < share < 1]
        if wrong:
            return [f"pruner 'allocate': a share of {wrong[0]:g} is not between 0 and 1: name shares of a part that may go"]
        if not facts.parameters:
            return []
        most = sum(self._most(facts, block) for block in range(facts.block_count))
        if facts.parameters <= most:
            return []
        reach, wanted = (100 * number / facts.sizes.parameters for number in (most, facts.parameters))
        problem = (
            f"pruner 'allocate' can remove {reach:.1f} % of the parameters of {facts.model} at most, and {wanted:.1f} % were "
            "asked for: lower prune.blocks or prune.fraction, or name larger shares"
        )
        return [problem]

    def _most(self, facts: PruneFacts, block: int) -> int:
        """Return how many weights a block can give at most."""
        of_block = facts.sizes.blocks[block]
        if self.drops:
            return of_block.parameters
        narrowed = (of_block.units[part] for of_place, part in places_of(facts.sizes) if of_place == block)
        return sum(max(widths(count, self.shares), default=0) * each for count, each in narrowed)

    def prune(self, context: PruneContext) -> Pruned:
        """Return the drops and shrinks; the biases are in the projections that belong to them."""
        if not context.parameters:
            return Pruned(Removal())
        self.check(context.facts)
        model, flap = context.model, Flap(tokens=self.tokens)
        inputs = flap.inputs(model, flap.windows_of(context), context.batch_tokens)
        divergence = context.divergence_of(context.sequences)
        choices = []
        for block in range(model.block_count):
            steps: list[Element] = [Drop(block)] if self.drops else []
            for place in (place for place in inputs if place[0] == block):
                count, _ = units_of(model, place)
                scores = unit_scores(flap.channel_scores(model, place, inputs[place]), count)
                order = scores.argsort(stable=True).tolist()
                steps += [Shrink(*place, tuple(sorted(order[:number]))) for number in widths(count, self.shares)]
            choices.append(_of_block([Choice((s,), _weights(model, s), divergence(Removal([s]))) for s in steps]))
        chosen = cheapest(choices, context.parameters)
        taken = Removal(element for choice in chosen for element in choice.elements)
        context.note(
            f"pruner 'allocate': the steps were measured at {sum(choice.cost for choice in chosen):.3f} nats a token in sum, "
            f"together they are at {divergence(taken):.3f}, without the biases"
        )
        shrinks = [element for element in taken if isinstance(element, Shrink)]
        return Pruned(taken, {s: compensated(model, s, inputs[s.block, s.part].mean_C) for s in shrinks})


def widths(count: int, shares: Sequence[float]) -> list[int]:
    """Return how many of a part's units may go: a share of them to the nearest, at least one and not all."""
    return sorted({min(max(1, round(share * count)), count - 1) for share in shares}) if count > 1 else []


def cheapest(choices: Sequence[Sequence[Choice]], budget: int) -> list[Choice]:
    """Return one choice of each block at most, whose weights sum to the budget, as near as can be, and whose costs to the least.

    It is a knapsack of one choice a block, in parts of the budget; ties take fewer weights, then what comes first.
    """
    quantum = budget / QUANTA
    # By quanta taken so far: the least cost, and the choices that have it.
    best: dict[int, tuple[float, tuple[Choice, ...]]] = {0: (0.0, ())}
    for of_block in choices:
        longer = dict(best)
        for taken, (cost, chosen) in best.items():
            for choice in of_block:
                reached = taken + round(choice.weights / quantum)
                if reached > QUANTA + 1:
                    continue
                total = cost + choice.cost
                if reached not in longer or total < longer[reached][0]:
                    longer[reached] = (total, (*chosen, choice))
        best = longer
    nearest = min(best, key=lambda taken: (abs(taken - QUANTA), taken))
    return list(best[nearest][1])


def _of_block(alone: Sequence[Choice]) -> list[Choice]:
    """Return the choices of a block: each step alone, and each width of attention with each of the MLP, at the sum of both."""
    by_part = {
        part: [choice for choice in alone if isinstance(choice.elements[0], Shrink) and choice.elements[0].part == part]
        for part in PARTS
    }
    both = [
        Choice((*a.elements, *b.elements), a.weights + b.weights, a.cost + b.cost)
        for a in by_part["attention"]
        for b in by_part["mlp"]
    ]
    return [*alone, *both]


def _weights(model: BlockModel, element: Element) -> int:
    """Return how many weights an element takes away."""
    if isinstance(element, Shrink):
        return len(element.units) * units_of(model, (element.block, element.part))[1]
    return sum(model.sizes.blocks[block].parameters for block in element.blocks)
