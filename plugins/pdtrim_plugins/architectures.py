"""Where families of transformers models keep their list of blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core import hookimpl

if TYPE_CHECKING:
    from pdtrim_core import BlockPlace

PLACES = {
    "gemma3": "model.language_model.layers",
    "gemma3_text": "model.layers",
    "gpt_neox": "gpt_neox.layers",
    "llama": "model.layers",
    "mistral": "model.layers",
    "mixtral": "model.layers",
    "opt": "model.decoder.layers",
    "phi3": "model.layers",
    "qwen2": "model.layers",
    "qwen3": "model.layers",
    "qwen3_moe": "model.layers",
}
"""The path of the module list, by the `model_type` of a config."""


@hookimpl
def pdtrim_find_blocks(model: Any) -> BlockPlace | None:
    """Answer for the families of `PLACES`."""
    from pdtrim_core import BlockPlace  # noqa: PLC0415 - listings must not import torch

    path = PLACES.get(model.config.model_type)
    return BlockPlace(path) if path else None
