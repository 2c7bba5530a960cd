"""Writes K/V to the engine's cache without attending, by operations of vLLM that are not public.

Shape suffixes: N token, H K/V heads, E head size.
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
