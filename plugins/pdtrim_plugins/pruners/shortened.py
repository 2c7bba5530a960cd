"""Shortened LLaMA: removes the least important blocks, by the perplexity without each, or by a first-order estimate.

Shape suffixes: B batch, T token, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Drop, PdtrimError, Pruned, Pruner, Removal

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import BlockModel, PruneContext, PruneFacts

KEPT_FIRST, KEPT_LAST = 4, 2
PLUS = Field(default=True, description=f"the paper's +: the first {KEPT_FIRST} blocks and the last {KEPT_LAST} are never removed")


class ShortenedPpl(Pruner):
    """Drops, all at once, the blocks whose removal by itself gives the lowest perplexity."""

    name = "shortened-ppl"
    cites = "Shortened LLaMA, Sec. 3.1 (arXiv:2402.02834)"

    window: int = Field(128, gt=1, description="tokens a window")
    windows: int = Field(10, gt=0, description="windows to measure on, at most")
    plus: bool = PLUS

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why too few blocks may be removed."""
        return problems(facts, plus=self.plus, name=self.name)

    def prune(self, context: PruneContext) -> Pruned:
        """Return the blocks; the score of a block is minus the loss without it, in nats a token. Ties go to the lower block.

        Raises `PdtrimError` where too few blocks may be removed.
        """
        self.check(context.facts)
        free = removable(context.model.block_count, plus=self.plus)
        if context.blocks == 0:
            return Pruned(Removal())
        loss = context.loss_of(context.windows(self.window, self.windows))
        return lowest([loss(Removal([Drop(block)])) for block in range(context.model.block_count)], free, context.blocks)


class ShortenedTaylor(Pruner):
    """Drops, all at once, the blocks of lowest first-order Taylor importance."""

    name = "shortened-taylor"
    cites = "Shortened LLaMA, Sec. 3.1 (arXiv:2402.02834)"

    window: int = Field(128, gt=1, description="tokens a window")
    windows: int = Field(10, gt=0, description="windows to measure on, at most")
    plus: bool = PLUS

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why too few blocks may be removed."""
        return problems(facts, plus=self.plus, name=self.name)

    def prune(self, context: PruneContext) -> Pruned:
        """Return the blocks; the score of a block is minus its importance. Ties go to the lower block.

        Raises `PdtrimError` where too few blocks may be removed, or for an importance that is not finite.
        """
        self.check(context.facts)
        free = removable(context.model.block_count, plus=self.plus)
        if context.blocks == 0:
            return Pruned(Removal())
        importances = taylor_importances(context.model, context.windows(self.window, self.windows), context.batch_tokens)
        for block, importance in enumerate(importances):
            if not math.isfinite(importance):
                raise PdtrimError(
                    f"{self.name}: the gradient of block {block} is not finite; if the weights are in float16, which overflows "
                    'early, say model.dtype = "bfloat16" or "float32"'
                )
        return lowest(importances, free, context.blocks)


def removable(blocks: int, *, plus: bool) -> list[int]:
    """Return which of so many blocks may be removed."""
    return list(range(KEPT_FIRST, blocks - KEPT_LAST) if plus else range(blocks))


def problems(facts: PruneFacts, *, plus: bool, name: str) -> list[str]:
    """Return why the budget is beyond the blocks that may be removed."""
    free = len(removable(facts.block_count, plus=plus))
    problem = (
        f"{name}: asked to remove {facts.blocks} of the {facts.block_count} blocks, but only {free} may be, because the "
        f"first {KEPT_FIRST} and the last {KEPT_LAST} always stay: {f'remove at most {free}, or ' * bool(free)}"
        "say plus = false"
    )
    return [problem] if facts.blocks > free else []


def lowest(values: Sequence[float], free: Sequence[int], count: int) -> Pruned:
    """Return the `count` removable blocks of lowest value."""
    return Pruned(
        Removal(map(Drop, sorted(free, key=values.__getitem__)[:count])), block_scores=tuple(-value for value in values)
    )


def taylor_importances(model: BlockModel, windows: Sequence[Sequence[int]], batch_tokens: int | None = None) -> list[float]:
    """Return for each block the sum of |w * dL/dw| over its weights, without biases.

    L is the mean loss (nats) of the next token over all windows, which are of one length, so that neither the batch nor the
    order of windows matters. Gradients are computed block by block, from the last one on: only one block's are held at a time,
    with the hidden states before every block.
    """
    import torch  # noqa: PLC0415 - listings must not import torch

    length = len(windows[0])
    each = max(1, (batch_tokens or model.fitting_batch) // length)
    batches = [torch.tensor(windows[start : start + each], device=model.device) for start in range(0, len(windows), each)]
    tokens = len(windows) * (length - 1)
    importances = [0.0] * model.block_count
    with torch.no_grad():
        passes = [_Pass(model, ids_BT) for ids_BT in batches]
    for block in reversed(range(model.block_count)):
        weights = [weight for name, weight in model.blocks[block].named_parameters() if not name.endswith("bias")]
        gradients = [torch.zeros_like(weight, dtype=torch.float32) for weight in weights]
        with torch.enable_grad(), _learning(weights):
            for one in passes:
                for gradient, more in zip(gradients, one.back_through(block, weights), strict=True):
                    if more is not None:
                        gradient.add_(more)
        pairs = zip(weights, gradients, strict=True)
        importances[block] = sum((w.detach().float() * g).abs().sum(dtype=torch.float64).item() for w, g in pairs) / tokens
    return importances


class _Pass:
    """One batch: its hidden states before every block, and the gradient of its summed loss at the current block."""

    def __init__(self, model: BlockModel, ids_BT: Tensor) -> None:
        self._model = model
        recording = model.record(ids_BT)
        self._calls = recording.calls
        self._hidden = [recording.hidden_BTD]
        for block in range(model.block_count):
            self._hidden.append(model.run(block, self._hidden[-1], self._calls))
        self._gradient_BTD = _gradient_of_loss(model, self._hidden.pop(), ids_BT)

    def back_through(self, block: int, weights: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """Return the gradients of a block's weights, None for unused ones; call for the last block first."""
        import torch  # noqa: PLC0415 - listings must not import torch

        before_BTD = self._hidden.pop().requires_grad_()
        after_BTD = self._model.run(block, before_BTD, self._calls)
        self._gradient_BTD, *found = torch.autograd.grad(after_BTD, [before_BTD, *weights], self._gradient_BTD, allow_unused=True)
        return found


def _gradient_of_loss(model: BlockModel, hidden_BTD: Tensor, ids_BT: Tensor) -> Tensor:
    """Return the gradient of the summed loss of the next token with respect to the hidden states after the last block.

    A sum, because the gradients of a mean are small enough to vanish in float16.
    """
    import torch  # noqa: PLC0415 - listings must not import torch

    leaf_ND = hidden_BTD[:, :-1].flatten(0, 1).requires_grad_()
    targets_N = ids_BT[:, 1:].flatten()
    gradient_ND = torch.zeros_like(leaf_ND)
    start = 0
    with torch.enable_grad():
        for logits_NV in model.logits(leaf_ND):
            targets = targets_N[start : start + len(logits_NV)].to(logits_NV.device)
            loss = torch.nn.functional.cross_entropy(logits_NV, targets, reduction="sum")
            gradient_ND += torch.autograd.grad(loss, leaf_ND)[0]
            start += len(logits_NV)
    gradient_BTD = torch.zeros_like(hidden_BTD)
    gradient_BTD[:, :-1] = gradient_ND.view(len(ids_BT), -1, hidden_BTD.shape[-1])
    return gradient_BTD


@contextmanager
def _learning(weights: Sequence[Tensor]) -> Iterator[None]:
    """Let some weights require gradients inside the context."""
    try:
        for weight in weights:
            weight.requires_grad_()
        yield
    finally:
        for weight in weights:
            weight.requires_grad = False
