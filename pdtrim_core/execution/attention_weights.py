"""The weights of attention, while a model runs: through the attention functions of transformers.

Shape suffixes: B batch, H heads, Q tokens that look, K tokens that are looked at.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_model import BlockModel

Seen = Callable[[int, Tensor], None]
"""Takes the number of a layer and the weights `[H, Q, K]` of its attention."""


@contextmanager
def attention_weights(model: BlockModel, seen: Seen) -> Iterator[None]:
    """Inside the context attention is computed by the model's own eager function, and `seen` is told its weights.

    That is done through the public table of attention functions, under the name that the model has it computed by, so that
    layers with a config of their own take part. The entry that was there is put back in any case.
    """
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS  # noqa: PLC0415 - slow to import

    def attend(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **more: Any) -> Any:
        eager = getattr(sys.modules[type(module).__module__], "eager_attention_forward", None)
        if eager is None:
            raise gives_no_weights(model)
        output, weights_BHQK = eager(module, query, key, value, _added(mask, query, key), **more)
        number = getattr(module, "layer_idx", None)
        if weights_BHQK is None or number is None:
            raise gives_no_weights(model)
        seen(number, weights_BHQK[0])
        return output, weights_BHQK

    name = model.attention
    before = ALL_ATTENTION_FUNCTIONS.get(name)
    ALL_ATTENTION_FUNCTIONS[name] = attend
    try:
        yield
    finally:
        del ALL_ATTENTION_FUNCTIONS[name]
        if ALL_ATTENTION_FUNCTIONS.get(name) is not before:
            # Someone had put another function there.
            ALL_ATTENTION_FUNCTIONS[name] = before


def _added(mask: Tensor | None, query: Tensor, key: Tensor) -> Tensor:
    """Return a mask as eager attention adds it; None stands for the causal one, whose last query is at the last key."""
    if mask is not None and mask.dtype != torch.bool:
        return mask
    queries, keys = query.shape[-2], key.shape[-2]
    if mask is None:
        mask = torch.ones(queries, keys, dtype=torch.bool, device=query.device).tril(keys - queries)
    return torch.zeros_like(mask, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)


def gives_no_weights(model: BlockModel) -> PdtrimError:
    """Return the error for a model whose attention cannot be seen."""
    return PdtrimError(
        f"{model.name or 'this model'} ({model.config.model_type}): its attention gives no weights through transformers' table "
        "of attention functions, so K/V cannot be selected by them: choose first-only, or leave out kv_selector"
    )
