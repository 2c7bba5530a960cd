"""Heads and MLP channels as units of one ranking over all blocks, each with the weights that it holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import BlockModel, ModelSizes, PruneFacts

Part = Literal["attention", "mlp", "experts"]  # what a Shrink may be of; of experts none is removed here
Place = tuple[int, Part]
PARTS: tuple[Part, ...] = ("attention", "mlp")


def lowest(scores: Sequence[float], costs: Sequence[float], budget: float) -> list[int]:
    """Return the positions of the lowest scores whose summed costs are closest to a budget; ties take the earlier, and fewer."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    sums = [0.0, *accumulate(costs[index] for index in order)]
    return order[: min(range(len(sums)), key=lambda count: (abs(sums[count] - budget), count))]


def adaptive(model: BlockModel, scores: Mapping[Place, Sequence[float]], budget: int) -> dict[Place, list[int]]:
    """Return the units to remove from each part, by one ranking of all units."""
    units = [(place, unit) for place, of_part in scores.items() for unit in lowest(of_part, [1] * len(of_part), len(of_part) - 1)]
    costs = [size_of(model, place)[1] for place, _ in units]
    chosen: dict[Place, list[int]] = {place: [] for place in scores}
    for index in lowest([scores[place][unit] for place, unit in units], costs, budget):
        place, unit = units[index]
        chosen[place].append(unit)
    return chosen


def places_of(sizes: ModelSizes) -> list[Place]:
    """Return the parts that have units, in the order of the blocks."""
    return [(block, part) for block, of_block in enumerate(sizes.blocks) for part in PARTS if part in of_block.units]


def size_of(model: BlockModel, place: Place) -> tuple[int, int]:
    """Return how many units a part has and how many weights one of them holds."""
    return model.sizes.blocks[place[0]].units[place[1]]


def output_of(model: BlockModel, place: Place) -> nn.Linear:
    """Return the projection out of a part, which reads its units."""
    out: Any = model.units(place[0]).projections(place[1])[-1]
    linear: nn.Linear = out
    return linear


def fused_parts(sizes: ModelSizes) -> list[Part]:
    """Return the parts that have units in no block, because their projections are fused or experts."""
    return sorted({*PARTS} - {part for _, part in places_of(sizes)})


def problems_of(pruner: str, facts: PruneFacts) -> Iterator[str]:
    """Yield why a model has no units, or too few of them for the budget of a pruner with this name."""
    units = [facts.sizes.blocks[block].units[part] for block, part in places_of(facts.sizes)]
    most = sum((count - 1) * cost for count, cost in units)
    if not units:
        yield (
            f"pruner '{pruner}' removes heads and MLP channels, but the projections of {facts.model} are fused or experts: "
            "choose a method that removes whole blocks, such as 'shortgpt'"
        )
    elif facts.parameters > most:
        reach, wanted = (100 * number / facts.sizes.parameters for number in (most, facts.parameters))
        yield (
            f"pruner '{pruner}' can remove {reach:.1f} % of the parameters of {facts.model} at most, as each part keeps a unit, "
            f"and {wanted:.1f} % were asked for: lower prune.blocks or prune.fraction"
        )
