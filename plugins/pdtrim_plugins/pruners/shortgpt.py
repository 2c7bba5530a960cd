"""ShortGPT: the blocks that change the stream least, in one shot."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdtrim_core import Drop, PruneContext, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from torch import Tensor


class ShortGpt(Pruner):
    """Drops the blocks of lowest Block Influence, all at once."""

    name = "shortgpt"
    cites = "ShortGPT, Eq. 1 (arXiv:2403.03853)"

    def prune(self, context: PruneContext) -> Pruned:
        """Return the blocks whose output is most like their input; ties go to the lower block."""
        alike, _ = context.states.mean_over_tokens(_cosine)
        order = sorted(range(len(alike)), key=lambda block: (-alike[block], block))
        return Pruned(Removal(map(Drop, order[: context.blocks])), block_scores=alike)


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    import torch  # noqa: PLC0415 - listings must not import torch

    return torch.cosine_similarity(before, after, dim=-1)
