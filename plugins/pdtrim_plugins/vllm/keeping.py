"""Operations that keep K/V in the engine's cache without attending, and that no compiler may remove.

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
    """Write K/V into the cache of a layer, hand them to its connector, and return an empty tensor that says so."""
    done: Tensor = _keep(key_NHE, value_NHE, layer_name)
    return done


@keep_kv.register_fake
def _(key_NHE: Tensor, value_NHE: Tensor, layer_name: str) -> Tensor:
    del value_NHE, layer_name
    return key_NHE.new_empty(0)


@torch.library.custom_op("pdtrim::after", mutates_args=())
def after(stream_ND: Tensor, done: Tensor) -> Tensor:
    """Return the stream as it is, but only once `done` was computed.

    A compiler removes what no one reads, and no one in prefill reads these K/V: the stream that goes on has to depend on them.
    """
    del done
    return stream_ND.clone()


@after.register_fake
def _(stream_ND: Tensor, done: Tensor) -> Tensor:
    del done
    return torch.empty_like(stream_ND)
