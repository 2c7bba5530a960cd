"""LLM-Streamline: replaces the run of blocks that changes the hidden states least by one trained block."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from pdtrim_core.api import Merge, PdtrimError, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import PruneContext, PruneFacts


class Streamline(Pruner):
    """Replaces the run of blocks whose output is most similar to its input by one block, trained from the run's first one.

    The recipe's `distiller` trains it: `mse` has the paper's loss. Unlike the authors' code, a run that ends with the last
    block is compared before the final norm, as all others are, and each token has the same weight, however long its text.
    """

    name = "streamline"
    cites = "LLM-Streamline, Sec. 3 (arXiv:2403.19135)"
    streams: ClassVar[bool] = True

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why the model has no run that long."""
        most = facts.block_count - 1
        if facts.blocks <= most:
            return []
        return [
            f"pruner 'streamline': at most {most} of {facts.block_count} blocks can be removed, not {facts.blocks}: remove fewer"
        ]

    def prune(self, context: PruneContext) -> Pruned:
        """Return one merge of one block more than the budget, and the block trained for it; ties go to the lower run.

        Raises `PdtrimError` where the model has no run of that length, or no similarity is finite.
        """
        if not context.blocks:
            return Pruned(Removal())
        self.check(context.facts)
        similarities = context.states.mean_over_windows(scaled_cosine, context.blocks + 1)
        if not any(map(math.isfinite, similarities)):
            raise PdtrimError(
                f"pruner 'streamline': no run of {context.blocks + 1} blocks has a finite similarity: say dtype = "
                '"float32" or "bfloat16" in [model]'
            )
        first = most_similar(similarities)
        merge, module = context.trained(Merge(first, first + context.blocks))
        context.note(
            f"blocks {first} to {first + context.blocks} become one; their similarity 0.5 + 0.5 cos is {similarities[first]:.4f}"
        )
        return Pruned(Removal([merge]), {merge: module})


def scaled_cosine(before: Tensor, after: Tensor) -> Tensor:
    """Return 0.5 + 0.5 cos of hidden states before and after, `[batch, token]` from `[batch, token, hidden]` twice."""
    import torch  # noqa: PLC0415 - listings must not import torch

    return 0.5 + 0.5 * torch.cosine_similarity(before, after, dim=-1)


def most_similar(similarities: tuple[float, ...]) -> int:
    """Return the position of the highest similarity, the first of equal ones; values that are not finite are skipped."""
    finite = [first for first, value in enumerate(similarities) if math.isfinite(value)]
    return max(finite, key=lambda first: (similarities[first], -first))
