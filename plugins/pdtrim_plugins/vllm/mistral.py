"""Mistral as a stage of a pair."""

from __future__ import annotations

import functools

from vllm.model_executor.models.mistral import MistralDecoderLayer, MistralForCausalLM, MistralModel

from pdtrim_plugins.vllm.blocks import block
from pdtrim_plugins.vllm.models import StageModel, with_blocks


class PDTrimMistralForCausalLM(StageModel, MistralForCausalLM):  # type: ignore[misc]
    """Mistral."""

    inner = with_blocks(MistralModel, layer_type=functools.partial(block, MistralDecoderLayer))
