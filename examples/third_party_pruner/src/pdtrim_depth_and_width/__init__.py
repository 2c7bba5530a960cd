"""A pruner for pdtrim-core that mixes two kinds of removal: whole blocks, and MLP channels of the blocks that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core import Drop, PdtrimError, Pruned, Pruner, Removal, Shrink, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    # These load torch, which listings do without.
    from pdtrim_core import BlockModel, PruneContext


class DepthAndWidth(Pruner):
    """Drops whole blocks for one part of the budget, and takes the weakest MLP channels of the others for the rest.

    Blocks go by the cosine of their input and output, the most alike first. Channels go by the length of what they write into
    the stream for one unit of activation, the same number in each block. A splitter can give prefill back each dropped block
    and each block's channels by themselves.
    """

    name = "depth-and-width"
    cites = "mixes both as Minitron does (arXiv:2407.14679), with simpler scores and without training"

    depth: float = Field(0.5, ge=0, le=1, description="share of the budget that goes as whole blocks, rounded down")

    def prune(self, context: PruneContext) -> Pruned:
        """Return the removal: drops, and one shrink for each block that stays."""
        model = context.model
        scores, _ = context.states.mean_over_tokens(_cosine)
        by_score = sorted(range(model.block_count), key=lambda block: -scores[block])
        dropped, kept = by_score[: int(self.depth * context.blocks)], by_score[int(self.depth * context.blocks) :]
        left = context.parameters - sum(model.sizes.blocks[block].parameters for block in dropped)
        channels = _channels(model, kept, left)
        shrinks = [Shrink(block, "mlp", _weakest(model, block, channels)) for block in kept if channels]
        return Pruned(Removal([*map(Drop, dropped), *shrinks]), block_scores=scores)


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    alike: Tensor = (before * after).sum(dim=-1) / (before.norm(dim=-1) * after.norm(dim=-1))
    return alike


def _channels(model: BlockModel, blocks: list[int], parameters: int) -> int:
    """Return how many channels of each block hold so many parameters together, to the nearest whole number."""
    if parameters <= 0:
        return 0
    units = model.units(blocks[0])
    if not units.has("mlp"):
        raise PdtrimError(
            f"{model.name} has MLPs that cannot lose channels (experts, or fused): say depth = 1, or use another pruner"
        )
    count = round(parameters / (units.parameters("mlp") * len(blocks)))
    if count >= units.count("mlp"):
        raise PdtrimError("the MLPs do not hold that much: prune less, or say a larger depth")
    return count


def _weakest(model: BlockModel, block: int, count: int) -> tuple[int, ...]:
    """Return the channels of a block whose columns of the output projection are shortest, in rising order."""
    lengths = model.units(block).projections("mlp")[-1].get_parameter("weight").float().norm(dim=0)
    return tuple(sorted(lengths.argsort(stable=True)[:count].tolist()))


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruner of this package."""
    yield DepthAndWidth
