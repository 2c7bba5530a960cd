"""LLM-Streamline: one trained block for the run of blocks that changes the stream least."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdtrim_core.api import Merge, PdtrimError, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import PruneContext


class Streamline(Pruner):
    """Replaces the run of blocks whose output is most like its input by one block, trained from its first one.

    The recipe's `distiller` trains it: `mse` has the paper's loss. Unlike the authors' code, a run that ends with the last
    block is compared in front of the final norm, as all others are, and each token counts the same, however long its text.
    """

    name = "streamline"
    cites = "LLM-Streamline, Sec. 3 (arXiv:2403.19135)"

    def prune(self, context: PruneContext) -> Pruned:
        """Return one merge of a block more than are to go, and the block that was trained for it; ties go to the lower run.

        Raises `PdtrimError` where the model has no run of that length, or no similarity that is a number.
        """
        if not context.blocks:
            return Pruned(Removal())
        count = context.model.block_count
        if context.blocks >= count:
            raise PdtrimError(
                f"pruner 'streamline': a run of {count} blocks can lose {count - 1}, not {context.blocks}: remove fewer"
            )
        alike = context.states.mean_over_windows(scaled_cosine, context.blocks + 1)
        if not any(map(math.isfinite, alike)):
            raise PdtrimError(
                f"pruner 'streamline': no run of {context.blocks + 1} blocks has a similarity that is a number: say dtype = "
                '"float32" or "bfloat16" in [model]'
            )
        first = most_alike(alike)
        merge, module = context.trained(Merge(first, first + context.blocks))
        context.note(
            f"blocks {first} to {first + context.blocks} become one; their similarity 0.5 + 0.5 cos is {alike[first]:.4f}"
        )
        return Pruned(Removal([merge]), {merge: module})


def scaled_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return 0.5 + 0.5 cos of each two states, `[batch, token]` from `[batch, token, hidden]` twice."""
    import torch  # noqa: PLC0415 - listings must not import torch

    return 0.5 + 0.5 * torch.cosine_similarity(before, after, dim=-1)


def most_alike(alike: tuple[float, ...]) -> int:
    """Return where the highest similarity is, the first of equal ones; what is no number is never taken."""
    finite = [first for first, value in enumerate(alike) if math.isfinite(value)]
    return max(finite, key=lambda first: (alike[first], -first))
