"""Whether a family gives the same numbers where choices and items share rows."""

from __future__ import annotations

from functools import partial

import torch

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.look_ahead import LookAhead, answers_of
from pdtrim_core.execution.prefix_cache import PACKING_TOLERANCE, ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import Plan


def packing_agrees(model: BlockModel, items: tuple[Item, ...], *, batch_tokens: int | None) -> bool:
    """Tell whether choices and items may share rows: tried on the first group, since not every family can."""
    items = tuple(item.continued("both") if item.dense_answer else item for item in items)
    forked = [item for item in items if item.one_prompt and len(item.choices) > 1 and not item.one_token]
    prefix_caches = [
        PrefixCache(model, ExecutionOptions(batch_tokens=batch_tokens, budget=0, packed=packed)) for packed in (True, False)
    ]
    group = prefix_caches[0].groups(forked or items)[0]
    try:
        packed, single = answers_of(model, [partial(_loglikelihoods, group, prefix_cache) for prefix_cache in prefix_caches])
    except (RuntimeError, TypeError, ValueError, IndexError, PdtrimError):
        # A family that cannot take a mask or positions of ours says so in its own way; its choices get rows of their own.
        return False
    gaps = [abs(a - b) for one, other in zip(packed, single, strict=True) for a, b in zip(one, other, strict=True)]
    return max(gaps) <= PACKING_TOLERANCE * _scale(model)


def _loglikelihoods(items: tuple[Item, ...], cache: PrefixCache, ahead: LookAhead | None) -> list[tuple[float, ...]]:
    return StagedModel(cache, Plan(), ahead=ahead).loglikelihoods(items)


def _scale(model: BlockModel) -> float:
    """How much coarser than float32 the weights' number format is."""
    dtype = next(model.model.parameters()).dtype
    return torch.finfo(dtype).eps / torch.finfo(torch.float32).eps
