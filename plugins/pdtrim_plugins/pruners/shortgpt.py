"""ShortGPT: removes the blocks that change the hidden states least, in one shot.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from pdtrim_core.api import Drop, Pass, PdtrimError, Pruned, Pruner, Removal, results_of

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import PruneContext

    Add = Callable[[Tensor, int, Tensor, Tensor], None]
    """Takes which positions of a batch count `[B, T]`, a block, and the hidden states before it and across."""

PADDED_BATCH = 8
"""Number of sequences that the code compared with pads to one length."""


class ShortGpt(Pruner):
    """Drops, all at once, the blocks of lowest Block Influence.

    `last_block = "behind-norm"` with `padding = "counted"` computes as sramshetty/ShortGPT does.
    """

    name = "shortgpt"
    cites = "ShortGPT, Eq. 1 (arXiv:2403.03853)"
    streams: ClassVar[bool] = True

    choose: Literal["blocks", "run"] = Field(
        "blocks",
        description="blocks: those that rotate the hidden states least, each by itself; run: the neighbouring blocks that rotate "
        "them least together, by the angle (arXiv:2403.17887, whose average is last-token)",
    )
    average: Literal["tokens", "sequences", "last-token"] = Field(
        "tokens",
        description="tokens: over all tokens, as in the paper; sequences: each sequence weighs the same; last-token: no others",
    )
    last_block: Literal["before-norm", "behind-norm"] = Field(
        "before-norm", description="where the output of the last block is taken: before the final norm, or after it"
    )
    padding: Literal["left-out", "counted"] = Field(
        "left-out", description=f"counted: sequences are padded {PADDED_BATCH} at a time, and padding counts as tokens"
    )

    def prune(self, context: PruneContext) -> Pruned:
        """Return the blocks whose output is most like their input; ties go to the lower block."""
        if self.choose == "blocks":
            alike = self.means(context, _cosine, across=1)
            order = sorted(range(len(alike)), key=lambda block: (-alike[block], block))
            return Pruned(Removal(map(Drop, order[: context.blocks])), block_scores=alike)
        if context.blocks == 0:
            return Pruned(Removal())
        angles = self.means(context, _angle, across=context.blocks)
        first = angles.index(min(angles))
        return Pruned(Removal(map(Drop, range(first, first + context.blocks))))

    def means(self, context: PruneContext, measure: Callable[[Tensor, Tensor], Tensor], *, across: int) -> tuple[float, ...]:
        """Return the mean of a measure between the hidden states before and after `across` blocks, for each first block.

        `measure` takes hidden states `[B, T, D]` twice, in float32, and returns `[B, T]`. Raises `PdtrimError` for a mean that
        is not finite.
        """
        import torch  # noqa: PLC0415 - listings must not import torch

        # Where the hidden states are: an accelerator is not waited for between batches.
        count, there = context.model.block_count + 1 - across, context.model.device
        of_blocks, weight = (torch.zeros(size, dtype=torch.float64, device=there) for size in (count, 1))

        def add(counts_BT: Tensor, first: int, before_BTD: Tensor, after_BTD: Tensor) -> None:
            if first + across == context.model.block_count and self.last_block == "behind-norm":
                after_BTD = context.model.normed(after_BTD.flatten(0, 1)).view(after_BTD.shape)
            weights_BT = self._weights(counts_BT)
            if first == 0:
                weight.add_(weights_BT.sum())
            found_BT = measure(before_BTD.float(), after_BTD.float()).double()
            of_blocks[first] += (weights_BT * found_BT.masked_fill(~counts_BT, 0)).sum()

        if self.padding == "counted":
            _look_padded(context, add, across)
        else:
            context.states.look(lambda batch, first, _, *hidden: add(batch.is_token_BT, first, *hidden), [across])
        (total,), sums = weight.tolist(), of_blocks.tolist()
        for first, value in enumerate(sums):
            if not math.isfinite(value):
                raise PdtrimError(
                    f"{self.name}: the hidden states before block {first}, or {across} later, are not finite; if the weights are "
                    'in float16, which overflows early, say model.dtype = "bfloat16" or "float32"'
                )
        return tuple(value / total for value in sums)

    def _weights(self, counts_BT: Tensor) -> Tensor:
        """Return how much each position counts, `[B, T]` in float64."""
        lengths_B1 = counts_BT.sum(dim=1, keepdim=True)
        if self.average == "tokens":
            return counts_BT.double()
        if self.average == "sequences":
            return counts_BT.double() / lengths_B1
        return (counts_BT & (counts_BT.cumsum(dim=1) == lengths_B1)).double()


def _look_padded(context: PruneContext, add: Add, across: int) -> None:
    """Call a function with the hidden states across blocks, for sequences in their order, padded on the right; all counts.

    The padding is the end-of-text token, follows its sequence, and attends to that sequence only.
    """
    import torch  # noqa: PLC0415 - listings must not import torch

    starts = range(0, len(context.sequences), PADDED_BATCH)
    with torch.inference_mode():
        passes = (_padded(context, context.sequences[start : start + PADDED_BATCH], add, across) for start in starts)
        for _ in results_of(passes, together=context.model.streams):
            pass


def _padded(context: PruneContext, group: Sequence[Sequence[int]], add: Add, across: int) -> Pass[None]:
    import torch  # noqa: PLC0415 - listings must not import torch

    model, ending = context.model, getattr(context.model.tokenizer, "eos_token_id", None) or 0
    # Some tokenizers have more tokens than the embedding has rows. What the padding is does not matter to what attends elsewhere.
    filler = ending if ending < model.vocabulary else 0
    width = max(map(len, group))
    ids_BT = torch.tensor([[*s, *[filler] * (width - len(s))] for s in group], device=model.device)
    position_T = torch.arange(width, device=model.device)
    is_token_BT = position_T < torch.tensor([[len(s)] for s in group], device=model.device)
    attends_BTT = is_token_BT[:, None, None] & (position_T <= position_T[:, None])
    recording = model.record(ids_BT, attends_BTT, position_T.expand(len(group), -1))
    hidden = deque([recording.hidden_BTD], maxlen=across + 1)
    for block in range(model.block_count):
        yield block
        hidden.append(model.run(block, hidden[-1], recording.calls))
        if len(hidden) > across:
            add(torch.ones_like(is_token_BT), block + 1 - across, hidden[0].to(model.device), hidden[-1].to(model.device))


def _cosine(before: Tensor, after: Tensor) -> Tensor:
    import torch  # noqa: PLC0415 - listings must not import torch

    return torch.cosine_similarity(before, after, dim=-1)


def _angle(before: Tensor, after: Tensor) -> Tensor:
    """Return the angle between hidden states, divided by pi: 0 to 1."""
    return _cosine(before, after).clamp(-1, 1).arccos() / math.pi
