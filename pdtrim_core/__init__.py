"""pdtrim-core prunes a language model twice, once for prefill and once for decode, with methods that anyone can plug in.

These are the public names; a plugin needs no others. Those that import torch load it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core.asks import Answer, Ask, AtLeast, Note, Probe, Staged
from pdtrim_core.calibration import Item, Sample, encode, python_reference
from pdtrim_core.components import (
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
from pdtrim_core.elements import Drop, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError
from pdtrim_core.evaluations import Metric, TaskResult, results_in
from pdtrim_core.files import cache_folder, whole_folder, write_whole
from pdtrim_core.hookspecs import hookimpl
from pdtrim_core.ladder import draw_ladder
from pdtrim_core.layers import Layer
from pdtrim_core.outcome import Gain, MergeResult, Outcome, SearchStep, Value
from pdtrim_core.plan import Plan
from pdtrim_core.plugins import PluginHost, load_plugins
from pdtrim_core.pruned import Pruned
from pdtrim_core.recipe import Recipe
from pdtrim_core.records import RunRecord, read_record
from pdtrim_core.saved_plan import SavedPlan
from pdtrim_core.scores import Scores, pair_scores
from pdtrim_core.search import Candidate, Points, Reading
from pdtrim_core.shared import Shared
from pdtrim_core.similarity_scorer import SimilarityScorer
from pdtrim_core.space import SearchSpace

if TYPE_CHECKING:
    from pdtrim_core.applying import ModelPair, apply
    from pdtrim_core.context import HiddenStates, ScoreContext
    from pdtrim_core.loading import LoadedRun, load_run
    from pdtrim_core.merges import Student, TeacherBatch, TeacherBatches
    from pdtrim_core.model import BlockModel
    from pdtrim_core.module_store import load_modules
    from pdtrim_core.narrowing import head_dim_of, narrowed
    from pdtrim_core.pipeline import run
    from pdtrim_core.place import BlockPlace
    from pdtrim_core.pruning import PruneContext
    from pdtrim_core.stages import StagedModel
    from pdtrim_core.trunk import Trunk
    from pdtrim_core.two_phase import TwoPhaseModel

_LAZY = {
    "apply": "pdtrim_core.applying",
    "BlockModel": "pdtrim_core.model",
    "BlockPlace": "pdtrim_core.place",
    "LoadedRun": "pdtrim_core.loading",
    "load_modules": "pdtrim_core.module_store",
    "load_run": "pdtrim_core.loading",
    "head_dim_of": "pdtrim_core.narrowing",
    "narrowed": "pdtrim_core.narrowing",
    "HiddenStates": "pdtrim_core.context",
    "PruneContext": "pdtrim_core.pruning",
    "ScoreContext": "pdtrim_core.context",
    "ModelPair": "pdtrim_core.applying",
    "StagedModel": "pdtrim_core.stages",
    "Student": "pdtrim_core.merges",
    "TeacherBatch": "pdtrim_core.merges",
    "TeacherBatches": "pdtrim_core.merges",
    "Trunk": "pdtrim_core.trunk",
    "TwoPhaseModel": "pdtrim_core.two_phase",
    "run": "pdtrim_core.pipeline",
}

__all__ = [
    "Answer",
    "Ask",
    "AtLeast",
    "BlockModel",
    "BlockPlace",
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
    "Points",
    "Probe",
    "PruneContext",
    "Pruned",
    "Pruner",
    "Reading",
    "Recipe",
    "RecipeError",
    "Removal",
    "Report",
    "RunRecord",
    "Sample",
    "SavedPlan",
    "ScoreContext",
    "Scorer",
    "Scores",
    "SearchSpace",
    "SearchStep",
    "Searcher",
    "Shared",
    "Shrink",
    "SimilarityScorer",
    "StageSplitter",
    "Staged",
    "StagedModel",
    "Student",
    "TaskResult",
    "TeacherBatch",
    "TeacherBatches",
    "Trunk",
    "TwoPhaseModel",
    "Value",
    "apply",
    "cache_folder",
    "draw_ladder",
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
