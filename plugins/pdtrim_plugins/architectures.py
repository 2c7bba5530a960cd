"""Block layouts of transformers families: the path of their list of blocks, and the submodules of a block that pruning needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core import hookimpl

if TYPE_CHECKING:
    from pdtrim_core.api import BlockLayout

SEPARATE = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj")
NORMED = (*SEPARATE, "self_attn.k_norm")
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
GATED = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
LAYOUTS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...], tuple[str, ...]]] = {
    "gemma3": ("model.language_model.layers", NORMED, ATTENTION, GATED),
    "gemma3_text": ("model.layers", NORMED, ATTENTION, GATED),
    "gpt_neox": ("gpt_neox.layers", (), (), ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")),
    "llama": ("model.layers", SEPARATE, ATTENTION, GATED),
    "mistral": ("model.layers", SEPARATE, ATTENTION, GATED),
    "mixtral": ("model.layers", SEPARATE, ATTENTION, ()),
    "opt": (
        "model.decoder.layers",
        ("self_attn_layer_norm", "self_attn.k_proj", "self_attn.v_proj"),
        (*ATTENTION[:3], "self_attn.out_proj"),
        ("fc1", "fc2"),
    ),
    "phi3": ("model.layers", (), (), ()),
    "qwen2": ("model.layers", SEPARATE, ATTENTION, GATED),
    "qwen3": ("model.layers", NORMED, ATTENTION, GATED),
    "qwen3_moe": ("model.layers", NORMED, ATTENTION, ()),
}
"""Block layouts by the `model_type` of a config: the path of the module list, and in a block the submodules that compute K and V,
the projections of attention, and those of the MLP; empty where they are fused or experts."""


@hookimpl
def pdtrim_find_blocks(model: Any) -> BlockLayout | None:
    """Return the block layout of a family in `LAYOUTS`, or the one that an export of ours says."""
    from pdtrim_core.api import BlockLayout  # noqa: PLC0415 - listings must not import torch

    entry = getattr(model.config, "pdtrim", None)
    told = entry.get("place") if isinstance(entry, dict) else None
    if told is not None:
        return BlockLayout(told["blocks"], *(tuple(told[key]) for key in ("kv", "attention", "mlp")))
    layout = LAYOUTS.get(model.config.model_type)
    return BlockLayout(*layout) if layout else None
