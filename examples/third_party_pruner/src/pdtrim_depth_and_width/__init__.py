"""A pruner for pdtrim-core that mixes two kinds of removal: whole blocks, and MLP channels of the blocks that stay."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Drop, PdtrimError, Pruned, Pruner, Removal, Shrink, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

    # These load torch, which listings do without.
    from pdtrim_core.api import BlockModel, PruneContext


class DepthAndWidth(Pruner):
    """Drops whole blocks for one part of the budget, and takes the weakest MLP channels of the others for the rest.

    Blocks go by the cosine of their input and output, the most alike first. Channels go by how much they write into the stream
    over the calibration tokens, the same number in each block. A splitter can give prefill back each dropped block
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
        written = _written(context, kept) if channels else {}
        shrinks = [Shrink(block, "mlp", tuple(sorted(order[:channels]))) for block, order in written.items()]
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


def _written(context: PruneContext, blocks: list[int]) -> dict[int, list[int]]:
    """Return the channels of each block in the order of what they write: activation times column of the output projection."""
    from pdtrim_core.api import ScoreContext  # it loads torch

    outputs = {block: context.model.units(block).projections("mlp")[-1] for block in blocks}
    squares: dict[int, Tensor] = {}

    def add(block: int, activations_BTC: Tensor) -> None:
        squares[block] = activations_BTC.double().square().sum(dim=(0, 1)) + squares.get(block, 0.0)

    hooks = [
        output.register_forward_pre_hook(lambda _, args, block=block: add(block, args[0])) for block, output in outputs.items()
    ]
    try:
        # One sequence at a time: padding writes nothing.
        for _ in ScoreContext(context.model, context.sequences, batch_tokens=1).batches():
            pass
    finally:
        for hook in hooks:
            hook.remove()
    lengths = {block: output.get_parameter("weight").double().norm(dim=0) for block, output in outputs.items()}
    return {block: (squares[block].sqrt() * lengths[block]).argsort(stable=True).tolist() for block in blocks}


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruner of this package."""
    yield DepthAndWidth
