"""The table of first tokens as prefill's checkpoint has it: states where a block runs, K and V where only these are computed.

Shape suffixes: K tokens, D hidden, H K/V heads, E head size.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import Layer, PdtrimError, Plan
from pdtrim_plugins.exporters.stages import Parts, StoredBlock

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel, FirstTokens

STATES, KEYS, VALUES = "first_states", "first_keys", "first_values"
"""What the tensors of a block are called: `[K, D]`, and K and V of all heads, in front of the rotary embedding."""


def first_token_blocks(parts: Parts, plan: Plan, table: FirstTokens | None) -> tuple[dict[str, Any], list[StoredBlock]]:
    """Return what the config of a plan's truncated prefill tells of a table, and its tensors as blocks of their own.

    Both are empty without a table. The rotary embedding turns nothing at the first position; what else it does, the engine does
    to these K as to all.
    """
    count = parts.model.block_count
    truncated = plan.truncated_prefill(count).layers("prefill", count)
    layers = [] if table is None else [layer for layer in truncated if table.covers(layer.block)]
    if table is None or not layers:
        return {}, []
    told = {
        "tokens": table.tokens.tolist(),
        "states": [layer.block for layer in layers if layer.runs],
        "kv": [layer.block for layer in layers if not layer.runs],
    }
    formats = None if parts.quantized is None else parts.quantized.config("prefill")
    ran = {layer.kv_slot for layer in plan.layers("prefill", count) if layer.runs}
    if formats is not None and any(layer.kv_slot in ran for layer in layers if not layer.runs):
        raise PdtrimError(
            "prefill has a table of first tokens and a number format, and was measured whole: run the recipe with "
            "evaluation.truncate_prefill = true, as engines run it"
        )
    stored = [_stored(parts, layer, table.states_at(layer.block), ran=layer.kv_slot in ran) for layer in layers]
    return {"first_tokens": told}, stored


def _stored(parts: Parts, layer: Layer, states_KD: Tensor, *, ran: bool) -> StoredBlock:
    """Return the table of a layer; `ran` tells that it is there only for its K/V because prefill is truncated."""

    def make() -> nn.Module:
        if layer.runs:
            return _module({STATES: states_KD})
        # Recovered weights are for what prefill lacks: those that the plan left make the K/V of what is exact.
        module = parts.module("prefill", layer) if ran else parts.left(layer)
        return _module(_kv_of(parts.model, module, states_KD))

    return StoredBlock(layer.block, layer.like, make, under="shadow." if layer.state == "shadow" else "")


def _kv_of(model: BlockModel, module: nn.Module, states_KD: Tensor) -> dict[str, Tensor]:
    import torch  # noqa: PLC0415 - listings must not import torch

    from pdtrim_core.api import head_dim_of  # noqa: PLC0415

    norm, k, v, *norms_of_k = (module.get_submodule(name) for name in model.layout.kv)
    with torch.inference_mode():
        normed_KD = norm(states_KD)
        keys_KHE = k(normed_KD).unflatten(-1, (-1, head_dim_of(model.config)))
        for norm_of_k in norms_of_k:
            keys_KHE = norm_of_k(keys_KHE)
        return {KEYS: keys_KHE.flatten(1), VALUES: v(normed_KD)}


def _module(tensors: Mapping[str, Tensor]) -> nn.Module:
    from torch import nn  # noqa: PLC0415 - listings must not import torch

    found = nn.Module()
    for name, tensor in tensors.items():
        found.register_buffer(name, tensor)
    return found
