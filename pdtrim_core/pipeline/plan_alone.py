"""A plan without its run, for exporters: a plan file that somebody shared, on a model that is opened by its name."""

from __future__ import annotations

from pathlib import Path

from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.apply import modules_in
from pdtrim_core.pipeline.assemble_outcome import costs_of
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.quantize import Quantized
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.parts import make_model
from pdtrim_core.results.outcome import CANDIDATES, Environment, Outcome, Sets, machine, versions


def open_for_plan(saved: SavedPlan, path: str, host: PluginHost, *, where: str) -> BlockModel:
    """Open a model by its path. Raises `PdtrimError` for one that the plan was not made for; `where` names what named it."""
    model = open_model(make_model(path, host, where=where), host)
    saved.check_meets(model.name, model.fingerprint)
    return model


def outcome_of_plan(saved: SavedPlan, model: BlockModel, folder: Path, host: PluginHost) -> Outcome:
    """Return what exporters need of a run, of a plan alone: the plan with its costs, and nothing that was measured.

    Merged blocks, and recovered and quantised layers, are those in the folder of the plan. Raises `PdtrimError` where they are
    not there, or are others.
    """
    modules = modules_in(folder, saved, model, host)
    return Outcome(
        model=model.name,
        license=model.license,
        block_count=model.block_count,
        objective="",
        saved_plan=saved.to_data(),
        block_scores=(),
        pair_scores=(),
        sets=Sets((), (), (), None),
        rows=(),
        gains=(),
        costs=() if saved.formats is not None else costs_of(model, saved.plan, modules, None, Quantized()),
        notes=(),
        seconds={},
        peak_memory=0,
        candidates=dict.fromkeys(CANDIDATES, 0),
        environment=Environment(versions(), machine(), 0, str(model.device), model.fingerprint, "", ""),
        recipe={},
    )
