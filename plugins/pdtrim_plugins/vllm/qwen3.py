"""Qwen3 as a stage of a pair."""

from __future__ import annotations

import functools

from vllm.model_executor.models.qwen3 import Qwen3DecoderLayer, Qwen3ForCausalLM, Qwen3Model

from pdtrim_plugins.vllm.blocks import block
from pdtrim_plugins.vllm.models import StageModel, with_blocks


class _WithBlocks(Qwen3Model):  # type: ignore[misc]
    decoder_layer_type = staticmethod(functools.partial(block, Qwen3DecoderLayer))


class PDTrimQwen3ForCausalLM(StageModel, Qwen3ForCausalLM):  # type: ignore[misc]
    """Qwen3."""

    inner = with_blocks(_WithBlocks)
