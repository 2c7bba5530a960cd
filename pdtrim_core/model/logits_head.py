"""The head that makes logits: given what suits torch, and written to memory that is kept.

Shape suffixes: N positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

HEAD_NUMBERS = 2**25
"""Logits held at once, in numbers: the head runs over this many divided by the vocabulary positions at a time."""


class KeptLogits:
    """Memory for logits that is used again: fresh pages for all of them cost as much as the product that they come from."""

    def __init__(self) -> None:
        self._logits: Tensor | None = None

    @contextmanager
    def written_by(self, head: nn.Module | None) -> Iterator[None]:
        """Let a head write its logits here inside the context."""
        # A head that someone wrapped, or that has a bias, is left alone; so is one that gradients may go through.
        if type(head) is not nn.Linear or head.bias is not None or vars(head).get("forward") or torch.is_grad_enabled():
            yield
            return

        def forward(hidden: Tensor) -> Tensor:
            rows_ND = hidden.flatten(0, -2)
            out_NV = self._room_for(len(rows_ND), head.weight)
            return torch.mm(rows_ND, head.weight.t(), out=out_NV).view(*hidden.shape[:-1], -1)

        vars(head)["forward"] = forward
        try:
            yield
        finally:
            del vars(head)["forward"]

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Leave what was written to whoever reads it: logits that are asked for inside the context get other memory."""
        kept, self._logits = self._logits, None
        try:
            yield
        finally:
            self._logits = kept

    def _room_for(self, count: int, weight_VD: Tensor) -> Tensor:
        """Return memory for the logits of so many positions: all that there may be at once are held."""
        if self._logits is None or len(self._logits) < count or self._logits.is_inference() != torch.is_inference_mode_enabled():
            most = max(count, HEAD_NUMBERS // len(weight_VD))
            self._logits = weight_VD.new_empty(most, len(weight_VD))
        return self._logits[:count]


def apart(result: Tensor, logits_NV: Tensor) -> Tensor:
    """Return a tensor that has no memory in common with logits."""
    if result.device != logits_NV.device:
        return result
    shared = result.untyped_storage().data_ptr() == logits_NV.untyped_storage().data_ptr()
    return result.clone() if shared else result


@contextmanager
def given_in_one_piece(head: nn.Module | None) -> Iterator[None]:
    """Let a head have its input in one piece inside the context.

    Models give it the last token of each row, which is a slice of all tokens. On a processor torch multiplies such a slice row by
    row where the weight needs no gradient, and in bfloat16 with a copy of the weight for each row: 17 GB for 64 rows, 896 hidden
    units and a vocabulary of 152,000.
    """
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(_in_one_piece)
    try:
        yield
    finally:
        hook.remove()


def _in_one_piece(_head: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(each.contiguous() if isinstance(each, Tensor) else each for each in given)
