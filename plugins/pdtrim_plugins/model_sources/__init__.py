"""Model sources: a Python package that ships weights, a GGUF file, a folder, the Hugging Face hub."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import ModelSource, hookimpl
from pdtrim_plugins.model_sources.folder import FolderModel
from pdtrim_plugins.model_sources.gguf_file import GgufModel
from pdtrim_plugins.model_sources.hub import HubModel
from pdtrim_plugins.model_sources.package import PackageModel

__all__ = ["FolderModel", "GgufModel", "HubModel", "PackageModel", "pdtrim_model_sources"]


@hookimpl
def pdtrim_model_sources() -> Iterable[type[ModelSource]]:
    """Yield the sources; the hub comes last, since it accepts any name."""
    yield from (PackageModel, GgufModel, FolderModel, HubModel)
