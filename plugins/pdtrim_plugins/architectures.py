"""Where families of transformers models keep their list of blocks, and what makes K and V in one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core import hookimpl

if TYPE_CHECKING:
    from pdtrim_core import BlockPlace

SEPARATE = ("input_layernorm", "self_attn.k_proj", "self_attn.v_proj")
NORMED = (*SEPARATE, "self_attn.k_norm")
PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "gemma3": ("model.language_model.layers", NORMED),
    "gemma3_text": ("model.layers", NORMED),
    "gpt_neox": ("gpt_neox.layers", ()),
    "llama": ("model.layers", SEPARATE),
    "mistral": ("model.layers", SEPARATE),
    "mixtral": ("model.layers", SEPARATE),
    "opt": ("model.decoder.layers", ("self_attn_layer_norm", "self_attn.k_proj", "self_attn.v_proj")),
    "phi3": ("model.layers", ()),
    "qwen2": ("model.layers", SEPARATE),
    "qwen3": ("model.layers", NORMED),
    "qwen3_moe": ("model.layers", NORMED),
}
"""The path of the module list and the parts of a block that make K and V, by the `model_type` of a config."""


@hookimpl
def pdtrim_find_blocks(model: Any) -> BlockPlace | None:
    """Answer for the families of `PLACES`."""
    from pdtrim_core import BlockPlace  # noqa: PLC0415 - listings must not import torch

    place = PLACES.get(model.config.model_type)
    return BlockPlace(*place) if place else None
