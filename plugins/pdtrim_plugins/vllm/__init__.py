"""The servers of a pair on vLLM: model classes, and connectors of prefill. Decode with blocks of one shape is stock vLLM.

vLLM finds `register` through the entry point group `vllm.general_plugins`. Nothing else of pdtrim-core imports this package,
and it imports vLLM only where vLLM is running. How to serve a pair is in `docs/how-to/serve.md`.
"""

from __future__ import annotations

MODELS = {
    "PDTrimLlamaForCausalLM": "llama",
    "PDTrimMistralForCausalLM": "mistral",
    "PDTrimQwen2ForCausalLM": "qwen2",
    "PDTrimQwen3ForCausalLM": "qwen3",
}
"""Architectures, and the module of each: what vLLM renames in one family does not keep the others from being served."""


def register() -> None:
    """Tell vLLM the architectures of our checkpoints. vLLM calls this in each of its processes, before it reads a config."""
    from vllm import ModelRegistry  # noqa: PLC0415 - only vLLM calls this

    from pdtrim_plugins import checkpoints  # noqa: PLC0415 - imports transformers

    checkpoints.register()
    for name, module in MODELS.items():
        # By name: the class, and all that needs an accelerator, is imported only when a model is made.
        ModelRegistry.register_model(name, f"pdtrim_plugins.vllm.{module}:{name}")
