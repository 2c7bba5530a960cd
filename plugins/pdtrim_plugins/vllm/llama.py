"""Llama as a stage of a pair."""

from __future__ import annotations

import functools

from vllm.model_executor.models.llama import LlamaDecoderLayer, LlamaForCausalLM, LlamaModel

from pdtrim_plugins.vllm.blocks import block
from pdtrim_plugins.vllm.models import StageModel, with_blocks


class PDTrimLlamaForCausalLM(StageModel, LlamaForCausalLM):  # type: ignore[misc]
    """Llama."""

    inner = with_blocks(LlamaModel, layer_type=functools.partial(block, LlamaDecoderLayer))
