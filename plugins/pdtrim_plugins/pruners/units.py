"""Heads and MLP channels as units of one ranking over all blocks, each with the weights that it holds."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import BlockModel, ModelSizes, PruneFacts

Part = Literal["attention", "mlp", "experts"]  # what a Shrink may be of; of experts none is removed here
Place = tuple[int, Part]
PARTS: tuple[Part, ...] = ("attention", "mlp")
NAMES: dict[Part, str] = {"attention": "heads", "mlp": "MLP channels"}


def lowest(scores: Sequence[float], costs: Sequence[float], budget: float) -> list[int]:
    """Return the positions of the lowest scores whose summed costs are closest to a budget; ties take the earlier, and fewer."""
    order = sorted(range(len(scores)), key=lambda index: (scores[index], index))
    sums = [0.0, *accumulate(costs[index] for index in order)]
    return order[: min(range(len(sums)), key=lambda count: (abs(sums[count] - budget), count))]


def adaptive(
    model: BlockModel, scores: Mapping[Place, Sequence[float]], budget: int, *, multiple: int = 1
) -> dict[Place, list[int]]:
    """Return the units to remove from each part, by one ranking of all units.

    Channels go in steps after which a multiple of so many is left, each ranked by the mean of its scores.
    """
    steps = [(place, step) for place, of_part in scores.items() for step in _steps(of_part, multiple if place[1] == "mlp" else 1)]
    means = [sum(scores[place][unit] for unit in step) / len(step) for place, step in steps]
    chosen: dict[Place, list[int]] = {place: [] for place in scores}
    for index in lowest(means, [len(step) * size_of(model, place)[1] for place, step in steps], budget):
        place, step = steps[index]
        chosen[place] += step
    return chosen


def _steps(scores: Sequence[float], multiple: int) -> list[list[int]]:
    """Return the units of a part in the steps in which they go, the lowest scores first; the best unit never does."""
    order = lowest(scores, [1] * len(scores), len(scores) - 1)
    ends = range(len(scores) % multiple or multiple, len(order) + 1, multiple)
    return [order[start:end] for start, end in pairwise([0, *ends])]


def places_of(sizes: ModelSizes, parts: Collection[Part] = PARTS) -> list[Place]:
    """Return those of some parts that have units, in the order of the blocks."""
    found = ((block, part) for block, of_block in enumerate(sizes.blocks) for part in PARTS if part in of_block.units)
    return [place for place in found if place[1] in parts]


def size_of(model: BlockModel, place: Place) -> tuple[int, int]:
    """Return how many units a part has and how many weights one of them holds."""
    return model.sizes.blocks[place[0]].units[place[1]]


def output_of(model: BlockModel, place: Place) -> nn.Linear:
    """Return the projection out of a part, which reads its units."""
    out: Any = model.units(place[0]).projections(place[1])[-1]
    linear: nn.Linear = out
    return linear


def fused_parts(sizes: ModelSizes, parts: Collection[Part] = PARTS) -> list[Part]:
    """Return those of some parts that have units in no block, because their projections are fused or experts."""
    return sorted({*parts} - {part for _, part in places_of(sizes)})


def problems_of(pruner: str, facts: PruneFacts, parts: Collection[Part] = PARTS) -> Iterator[str]:
    """Yield why a model has no units of some parts, or too few of them for the budget of a pruner with this name."""
    units = [facts.sizes.blocks[block].units[part] for block, part in places_of(facts.sizes, parts)]
    most = sum((count - 1) * cost for count, cost in units)
    if not units:
        named = " and ".join(NAMES[part] for part in PARTS if part in parts)
        yield (
            f"pruner '{pruner}' removes {named}, but the projections of {facts.model} are fused or experts: "
            "choose a method that removes whole blocks, such as 'shortgpt', or search for them: leave the pruner out (with "
            "pdtrim-core prune: --preset blocks)"
        )
    elif facts.parameters > most:
        reach, wanted = (100 * number / facts.sizes.parameters for number in (most, facts.parameters))
        yield (
            f"pruner '{pruner}' can remove {reach:.1f} % of the parameters of {facts.model} at most, as each part keeps a unit, "
            f"and {wanted:.1f} % were asked for: lower prune.blocks or prune.fraction"
        )
