"""The kit for plugin authors: tiny models and contract tests."""

from __future__ import annotations

from pdtrim_core.testing.models import FAMILIES, ByteTokenizer, tiny_config, tiny_llama, tiny_model, tiny_transformers

__all__ = ["FAMILIES", "ByteTokenizer", "tiny_config", "tiny_llama", "tiny_model", "tiny_transformers"]
