"""Qwen2 and Qwen2.5 as a stage of a pair."""

from __future__ import annotations

import functools

from vllm.model_executor.models.qwen2 import Qwen2DecoderLayer, Qwen2ForCausalLM, Qwen2Model

from pdtrim_plugins.vllm.blocks import block
from pdtrim_plugins.vllm.models import StageModel, with_blocks


class PDTrimQwen2ForCausalLM(StageModel, Qwen2ForCausalLM):  # type: ignore[misc]
    """Qwen2 and Qwen2.5."""

    inner = with_blocks(Qwen2Model, decoder_layer_type=functools.partial(block, Qwen2DecoderLayer))
