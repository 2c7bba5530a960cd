"""Exporters: files for other programs."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Exporter, hookimpl
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.draft import Draft
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.llm_compressor import LlmCompressor
from pdtrim_plugins.exporters.plan import PlanFile
from pdtrim_plugins.exporters.vllm import Vllm


@hookimpl
def pdtrim_exporters() -> Iterable[type[Exporter]]:
    """Yield the exporters."""
    yield from (PlanFile, Checkpoints, Vllm, Gguf, LlmCompressor, Draft)
