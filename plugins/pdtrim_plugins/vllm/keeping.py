"""Operations that write K/V to the engine's cache without attending, and that a compiler cannot remove.

Shape suffixes: N token, D hidden, H K/V heads, E head size.
"""

from __future__ import annotations

import torch
from torch import Tensor
from vllm.model_executor.layers.attention.attention import unified_kv_cache_update
from vllm.model_executor.layers.attention.kv_transfer_utils import maybe_transfer_kv_layer


@maybe_transfer_kv_layer  # type: ignore[untyped-decorator]  # vLLM's
def _keep(key: Tensor, value: Tensor, layer_name: str) -> Tensor:
    done: Tensor = unified_kv_cache_update(key, value, layer_name)
    return done


@torch.library.custom_op("pdtrim::keep_kv", mutates_args=())
def keep_kv(key_NHE: Tensor, value_NHE: Tensor, layer_name: str) -> Tensor:
    """Write K/V into the cache of a layer, hand them to its connector, and return an empty tensor to depend on."""
    done: Tensor = _keep(key_NHE, value_NHE, layer_name)
    return done


@keep_kv.register_fake
def _(key_NHE: Tensor, value_NHE: Tensor, layer_name: str) -> Tensor:
    del value_NHE, layer_name
    return key_NHE.new_empty(0)


@torch.library.custom_op("pdtrim::after", mutates_args=())
def after(hidden_ND: Tensor, done: Tensor) -> Tensor:
    """Return the hidden states unchanged, but only after `done` was computed.

    A compiler removes unused results, and nothing in prefill reads these K/V: so the hidden states are made to depend on them.
    """
    del done
    return hidden_ND.clone()


@after.register_fake
def _(hidden_ND: Tensor, done: Tensor) -> Tensor:
    del done
    return torch.empty_like(hidden_ND)
