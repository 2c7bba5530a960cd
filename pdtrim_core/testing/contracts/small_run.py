"""A real run on a tiny model, for exporters and reports."""

from __future__ import annotations

import copy
import functools
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.layer_kinds import Quantizer
from pdtrim_core.api.model_source import LoadedModel, ModelSource
from pdtrim_core.execution.recovered_weights import RECOVERED, digest_of, save_recovered
from pdtrim_core.host.host import Origin, PluginHost, load_plugins
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, save_modules
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.quantize import write_quantized
from pdtrim_core.plan.elements import Merge
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
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
    return _outcome(), open_model(TinyModel(path=TINY), load_plugins())


def run_with_plan(
    model: BlockModel,
    plan: Plan,
    run: Path,
    modules: Mapping[Any, nn.Module] | None = None,
    *,
    first: FirstToken = "decode",
    quantizer: Quantizer | None = None,
) -> Outcome:
    """Return the outcome of `small_run` with another model and plan; the plan's modules are written where exporters read them.

    Those under a `LayerOf` are recovered layers. A merge without a module gets the block that it keeps, its weights a little
    larger. A `quantizer` gives the stages its formats.
    """
    given = dict(modules or {})
    for element in dict.fromkeys((*plan.prefill, *plan.decode)):
        if isinstance(element, Merge) and element not in given:
            given[element] = grown(model, element)
    save_modules(plan, given, run / MODULES)
    save_recovered(plan, model, given, run / RECOVERED)
    recovered = digest_of(run / RECOVERED)
    formats = None if quantizer is None else write_quantized(run, model, plan, given, quantizer, use=quantizer.name).formats
    saved = SavedPlan(plan, model.name, model.fingerprint, model.block_count, first, recovered, formats)
    recipe = {
        **_outcome().recipe,
        **({} if quantizer is None else {"formats": {"use": quantizer.name, **quantizer.model_dump()}}),
    }
    return replace(_outcome(), model=model.name, block_count=model.block_count, saved_plan=saved.to_data(), recipe=recipe)


def grown(model: BlockModel, merge: Merge) -> nn.Module:
    """Return a block for a merge: the one it keeps, 5 % larger, but for what makes K and V where those are frozen."""
    block = copy.deepcopy(model.blocks[merge.keep])
    kept = model.layout.kv if merge.kv == "frozen" else ()
    frozen = {id(parameter) for name in kept for parameter in block.get_submodule(name).parameters()}
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.mul_(1.0 if id(parameter) in frozen else 1.05)
    return block


TINY = "tiny:llama"


@functools.cache
def _outcome() -> Outcome:
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "searcher": {"use": "random", "tries": 3},
        "splitter": {"use": "gain", "threshold": 0},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
    }
    with tempfile.TemporaryDirectory() as folder:
        return pipeline.run(Recipe.from_data(data, where="small.toml", out=Path(folder) / "small", host=host), host)
