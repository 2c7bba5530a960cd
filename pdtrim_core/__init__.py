"""pdtrim-core prunes a language model twice, once for prefill and once for decode, with methods that anyone can plug in.

These are the public names; a plugin needs no others. Those that import torch load it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.kinds import (
    CalibrationSource,
    Distiller,
    Exporter,
    LoadedModel,
    ModelSource,
    Objective,
    Pruner,
    Report,
    Scorer,
    Searcher,
    StageSplitter,
)
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.api.requests import AtLeast, Note, Probe, Request, Result, Staged
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.api.similarity_scorer import SimilarityScorer
from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.data.readings import Candidate, Reading, Score
from pdtrim_core.data.scores import Scores, pair_scores
from pdtrim_core.data.texts import python_reference
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.plan.diagram import draw_diagram
from pdtrim_core.plan.elements import Drop, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.atomic_files import cache_folder, whole_folder, write_whole
from pdtrim_core.results.outcome import Gain, MergeResult, Outcome, SearchStep, Value
from pdtrim_core.results.record import RunRecord, read_record
from pdtrim_core.results.task_results import Metric, TaskResult, results_in

if TYPE_CHECKING:
    from pdtrim_core.api.score_context import HiddenStates, ScoreContext
    from pdtrim_core.execution.prefix_cache import PrefixCache
    from pdtrim_core.execution.staged_model import StagedModel
    from pdtrim_core.execution.two_phase import TwoPhaseModel
    from pdtrim_core.model.block_layout import BlockLayout
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.model.narrowing import head_dim_of, narrowed
    from pdtrim_core.model.weights import load_modules
    from pdtrim_core.pipeline.apply import ModelPair, apply
    from pdtrim_core.pipeline.merge_store import Student, TeacherBatch, TeacherBatches
    from pdtrim_core.pipeline.open_run import LoadedRun, load_run
    from pdtrim_core.pipeline.pipeline import run
    from pdtrim_core.pipeline.prune import PruneContext

_LAZY = {
    "apply": "pdtrim_core.pipeline.apply",
    "BlockModel": "pdtrim_core.model.block_model",
    "BlockLayout": "pdtrim_core.model.block_layout",
    "LoadedRun": "pdtrim_core.pipeline.open_run",
    "load_modules": "pdtrim_core.model.weights",
    "load_run": "pdtrim_core.pipeline.open_run",
    "head_dim_of": "pdtrim_core.model.narrowing",
    "narrowed": "pdtrim_core.model.narrowing",
    "HiddenStates": "pdtrim_core.api.score_context",
    "PruneContext": "pdtrim_core.pipeline.prune",
    "ScoreContext": "pdtrim_core.api.score_context",
    "ModelPair": "pdtrim_core.pipeline.apply",
    "StagedModel": "pdtrim_core.execution.staged_model",
    "Student": "pdtrim_core.pipeline.merge_store",
    "TeacherBatch": "pdtrim_core.pipeline.merge_store",
    "TeacherBatches": "pdtrim_core.pipeline.merge_store",
    "PrefixCache": "pdtrim_core.execution.prefix_cache",
    "TwoPhaseModel": "pdtrim_core.execution.two_phase",
    "run": "pdtrim_core.pipeline.pipeline",
}

__all__ = [
    "AtLeast",
    "BlockLayout",
    "BlockModel",
    "CalibrationSource",
    "Candidate",
    "Distiller",
    "Drop",
    "Element",
    "Exporter",
    "Gain",
    "HiddenStates",
    "Item",
    "KvOnly",
    "Layer",
    "LoadedModel",
    "LoadedRun",
    "Merge",
    "MergeResult",
    "Metric",
    "ModelPair",
    "ModelSource",
    "Note",
    "Objective",
    "Outcome",
    "PdtrimError",
    "Plan",
    "PlanError",
    "PluginError",
    "PluginHost",
    "PrefixCache",
    "Probe",
    "PruneContext",
    "Pruned",
    "Pruner",
    "Reading",
    "Recipe",
    "RecipeError",
    "Removal",
    "Report",
    "Request",
    "Result",
    "RunCache",
    "RunRecord",
    "Sample",
    "SavedPlan",
    "Score",
    "ScoreContext",
    "Scorer",
    "Scores",
    "SearchSpace",
    "SearchStep",
    "Searcher",
    "Shrink",
    "SimilarityScorer",
    "StageSplitter",
    "Staged",
    "StagedModel",
    "Student",
    "TaskResult",
    "TeacherBatch",
    "TeacherBatches",
    "TwoPhaseModel",
    "Value",
    "apply",
    "cache_folder",
    "draw_diagram",
    "encode",
    "head_dim_of",
    "hookimpl",
    "load_modules",
    "load_plugins",
    "load_run",
    "narrowed",
    "pair_scores",
    "python_reference",
    "read_record",
    "results_in",
    "run",
    "whole_folder",
    "write_whole",
]


def __getattr__(name: str) -> Any:
    """Import a public name that needs torch when it is first asked for."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pdtrim_core' has no attribute '{name}'")
    import importlib  # noqa: PLC0415 - only the lazy names need it

    return getattr(importlib.import_module(_LAZY[name]), name)
