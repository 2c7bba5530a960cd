"""Attention of decode's layers that read only some of a prompt's K/V: masks, in one pass and on top of a cache.

Shape suffixes: B batch, Q tokens that look, K tokens that may be looked at, N tokens of prompts that prefill reads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.batching import Span
from pdtrim_core.execution.handed_over import HandedOver
from pdtrim_core.execution.stage_modules import Step, entries_of
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.selections import Selection

MASK = "attention_mask"
"""The argument of a block that tells each token where it may look, in all families that can be masked from outside."""
MASKED = ("sdpa", "eager")
"""The attention implementations of transformers that take a mask of each token's own."""


def check_masks(model: BlockModel) -> None:
    """Raise `PdtrimError` for a model in which no mask of ours reaches attention."""
    if model.attention not in MASKED:
        raise PdtrimError(
            f"K/V are selected by masks, which attention by {model.attention} does not take: open {model.name or 'the model'} "
            f"with attn_implementation {' or '.join(MASKED)}"
        )


def unread_in(spans: Sequence[Span], width: int, rows: int, selection: Selection) -> Tensor:
    """Return `[B, 1, Q, K]`, True where a token of decode may not look, for segments in rows of so many columns."""
    unread_BQK = torch.zeros(rows, 1, width, width, dtype=torch.bool)
    for span in spans:
        head, tail = selection.read(span.read)
        behind = span.start + span.read
        unread_BQK[span.row, 0, behind : span.stop, span.start + head : behind - tail] = True
    return unread_BQK


def selected_call(model: BlockModel, call: Call, unread_BQK: Tensor) -> Call:
    """Return the call of a block in which some tokens do not look at some others."""
    if MASK not in call.kwargs:
        raise PdtrimError(
            f"K/V cannot be selected for {model.name or 'this model'}: its blocks take no {MASK}: leave out kv_selector"
        )
    return replace(call, kwargs={**call.kwargs, MASK: _masked(model, call.kwargs[MASK], unread_BQK)})


def unread_of(mask_BN: Tensor, selection: Selection) -> Tensor:
    """Return `[B, N]`, True at the tokens of prompts, padded on the left where the mask is 0, that a selection leaves out."""
    unread_BN = torch.zeros_like(mask_BN, dtype=torch.bool)
    width = mask_BN.shape[1]
    for row, tokens in enumerate(mask_BN.long().sum(dim=1).tolist()):
        head, tail = selection.read(tokens)
        unread_BN[row, width - tokens + head : width - tail] = True
    return unread_BN


def give_selections(model: BlockModel, steps: Sequence[Step], handed: HandedOver) -> None:
    """Let decode's steps look past the K/V that they do not have; `as_stage`, inside which this is called, puts all back."""
    for number, step in entries_of(steps):
        if number in handed.unread:
            vars(step.module)["forward"] = _looking_past(model, step, number, handed)


def _looking_past(model: BlockModel, step: Step, number: int, handed: HandedOver) -> Callable[..., Any]:
    inner = step.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden_BQD = args[0] if args else kwargs["hidden_states"]
        unread_BN, queries = handed.unread[number], hidden_BQD.shape[1]
        behind = handed.cache.get_seq_length(number) + queries - unread_BN.shape[1]
        unread_BK = functional.pad(unread_BN, (0, behind))
        unread_BQK = unread_BK[:, None, None].expand(-1, 1, queries, -1)
        call = selected_call(model, Call(args[1:], kwargs, by_keyword=not args), unread_BQK)
        return inner(*args, **call.kwargs)

    return forward


def _masked(model: BlockModel, mask: Any, unread_BQK: Tensor) -> Tensor:
    """Return an attention mask that hides more; None stands for the causal one, whose last query is at the last key."""
    if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 4):
        raise PdtrimError(f"K/V cannot be selected for {model.name or 'this model'}: its attention takes no mask of each token")
    if mask is None:
        queries, keys = unread_BQK.shape[-2:]
        mask = torch.ones(queries, keys, dtype=torch.bool, device=model.device).tril(keys - queries)
        if model.attention != "sdpa":
            mask = torch.zeros_like(mask, dtype=model.dtype).masked_fill(~mask, torch.finfo(model.dtype).min)
    unread_BQK = unread_BQK.to(mask.device)
    more = ~unread_BQK & mask if mask.dtype == torch.bool else mask.masked_fill(unread_BQK, torch.finfo(mask.dtype).min)
    assert isinstance(more, Tensor)
    return more
