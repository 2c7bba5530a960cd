"""A real run on a tiny model, for exporters and reports."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pdtrim_core import pipeline
from pdtrim_core.components import LoadedModel, ModelSource
from pdtrim_core.hookspecs import hookimpl
from pdtrim_core.model import BlockModel
from pdtrim_core.outcome import Outcome
from pdtrim_core.plugins import Origin, PluginHost, load_plugins
from pdtrim_core.recipe import resolve
from pdtrim_core.testing.models import ByteTokenizer, tiny_config, tiny_transformers


class TinyModel(ModelSource):
    """A tiny model with random weights: tiny:FAMILY."""

    name = "tiny"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Take what begins with tiny:."""
        return path.startswith("tiny:")

    def open(self) -> LoadedModel:
        """Make the model."""
        dtype = torch.float32 if self.dtype == "auto" else getattr(torch, self.dtype)
        return LoadedModel(tiny_transformers(self._family, dtype=dtype), ByteTokenizer(), self.path)

    def open_config(self) -> Any:
        """Return the config of such a model."""
        return tiny_config(self._family)

    @property
    def _family(self) -> str:
        return self.path.removeprefix("tiny:")


def tiny_host() -> PluginHost:
    """Return a host with all installed plugins, and `TinyModel` as one more model source."""
    host = load_plugins()
    host.register(SimpleNamespace(pdtrim_model_sources=hookimpl(lambda: [TinyModel])), Origin("tiny", "pdtrim_core.testing"))
    return host


def small_run() -> tuple[Outcome, BlockModel]:
    """Return the outcome of a real run on a tiny model, made once, and a fresh copy of that model."""
    return _outcome(), pipeline.open_model(TinyModel(path=TINY), load_plugins())


TINY = "tiny:llama"


@functools.cache
def _outcome() -> Outcome:
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "prune": {"blocks": 2},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "searcher": {"use": "random", "tries": 3},
        "splitter": {"use": "gain", "threshold": 0},
        "objective": "margin",
        "evaluation": {"threads": 1},
    }
    with tempfile.TemporaryDirectory() as folder:
        return pipeline.run(resolve(data, host, where="small.toml", out=Path(folder) / "small"), host)
