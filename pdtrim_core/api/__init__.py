"""What a plugin author sees: the kinds of component, what each is given, and what it returns.

A plugin needs no other names. Those that import torch load it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core.api.component import Component
from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.export_facts import ExportFacts
from pdtrim_core.api.format_facts import FormatFacts
from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.api.item_kinds import CalibrationSource, Objective
from pdtrim_core.api.kv_selector import KvSelector
from pdtrim_core.api.layer_kinds import LayerRecovery, Quantizer, Recovery
from pdtrim_core.api.model_source import LoadedModel, ModelSource
from pdtrim_core.api.plan_kinds import Distiller, Pruner, Scorer, Searcher, StageSplitter
from pdtrim_core.api.prune_facts import PruneFacts
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.api.recovery_facts import RecoveryFacts
from pdtrim_core.api.requests import (
    AtLeast,
    BestOf,
    Note,
    Probe,
    Request,
    Requests,
    Result,
    Staged,
    best_of,
    measure,
    note,
)
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.api.selection_facts import SelectionFacts
from pdtrim_core.api.similarity_scorer import SimilarityScorer
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.api.writer_kinds import Exporter, Report
from pdtrim_core.data.items import Along, Item, Sample, encode
from pdtrim_core.data.readings import Candidate, Reading, Score
from pdtrim_core.data.scores import Scores, pair_scores
from pdtrim_core.data.texts import python_reference
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError, reason_of
from pdtrim_core.files.atomic_files import alone, cache_folder, whole_folder, write_whole
from pdtrim_core.files.checksums import MANIFEST, damaged, sha256_of, write_manifest
from pdtrim_core.files.reading import UnreadableError, parse_json, read_json, read_lines, read_text
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.passes import Pass, results_of
from pdtrim_core.model.placement import Placement, check_devices, first_device, is_streaming, loading_options, place
from pdtrim_core.plan.diagram import draw_diagram, lost_units
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink, Stage
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import LayerOf, Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.plan.selections import Edges, FirstOnly, Selection
from pdtrim_core.results.fidelity import AnswerSample, Fidelity
from pdtrim_core.results.outcome import Gain, MergeResult, Outcome, SearchStep, Value
from pdtrim_core.results.record import RunRecord, read_record
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric, TaskResult, results_in
from pdtrim_core.wording import one_line, shortened, shown, visible

if TYPE_CHECKING:
    from pdtrim_core.api.distillation import Student, TeacherBatch, TeacherBatches
    from pdtrim_core.api.prune_context import PruneContext
    from pdtrim_core.api.recovery_context import PairBatch, RecoveryContext
    from pdtrim_core.api.routed_tokens import RoutedTokens
    from pdtrim_core.api.score_context import HiddenStates, ScoreContext, TokenBatch
    from pdtrim_core.api.selection_context import SelectionContext
    from pdtrim_core.execution.distributions import drawn
    from pdtrim_core.execution.first_tokens import FirstTokens
    from pdtrim_core.execution.quantized_weights import QuantizedWeights
    from pdtrim_core.execution.recovered_weights import RecoveredWeights, read_first_tokens
    from pdtrim_core.execution.stage_walk import LayerTokens, WalkedLayer
    from pdtrim_core.model.auto_class import auto_class_of, why_no_model
    from pdtrim_core.model.block_model import BlockModel
    from pdtrim_core.model.block_parts import PartModule, without_part
    from pdtrim_core.model.dtypes import pattern_of
    from pdtrim_core.model.experts import experts_in
    from pdtrim_core.model.mapped_weights import MappedWeights
    from pdtrim_core.model.narrowing import head_dim_of, narrowed
    from pdtrim_core.model.renumbering import renumbered, steps_as_lists, traits_of, uncountable
    from pdtrim_core.model.weights import load_modules, read_module, write_tensors

__all__ = [
    "MANIFEST",
    "Along",
    "AnswerSample",
    "AtLeast",
    "BestOf",
    "BlockLayout",
    "BlockModel",
    "CalibrationSource",
    "Candidate",
    "Component",
    "CostModel",
    "Distiller",
    "Drop",
    "DropPart",
    "Edges",
    "Element",
    "ExportFacts",
    "Exporter",
    "Fidelity",
    "FirstOnly",
    "FirstTokens",
    "FormatFacts",
    "Formats",
    "Gain",
    "HiddenStates",
    "Item",
    "KvOnly",
    "KvSelector",
    "Layer",
    "LayerOf",
    "LayerRecovery",
    "LayerTokens",
    "LoadedModel",
    "MappedWeights",
    "Merge",
    "MergeResult",
    "Metric",
    "ModelSource",
    "Note",
    "Objective",
    "Outcome",
    "PairBatch",
    "PartModule",
    "Pass",
    "PdtrimError",
    "Placement",
    "Plan",
    "PlanError",
    "PluginError",
    "Probe",
    "PruneContext",
    "PruneFacts",
    "Pruned",
    "Pruner",
    "QuantizedWeights",
    "Quantizer",
    "Reading",
    "RecipeError",
    "RecoveredWeights",
    "Recovery",
    "RecoveryContext",
    "RecoveryFacts",
    "RecoveryResult",
    "Removal",
    "Report",
    "Request",
    "Requests",
    "Result",
    "RoutedTokens",
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
    "Selection",
    "SelectionContext",
    "SelectionFacts",
    "Shrink",
    "SimilarityScorer",
    "Stage",
    "StageFacts",
    "StageSplitter",
    "Staged",
    "Student",
    "TaskResult",
    "TeacherBatch",
    "TeacherBatches",
    "TokenBatch",
    "UnreadableError",
    "Value",
    "WalkedLayer",
    "alone",
    "auto_class_of",
    "best_of",
    "cache_folder",
    "check_devices",
    "damaged",
    "draw_diagram",
    "drawn",
    "encode",
    "experts_in",
    "first_device",
    "head_dim_of",
    "hookimpl",
    "is_streaming",
    "load_modules",
    "loading_options",
    "lost_units",
    "measure",
    "narrowed",
    "note",
    "one_line",
    "pair_scores",
    "parse_json",
    "pattern_of",
    "place",
    "python_reference",
    "read_first_tokens",
    "read_json",
    "read_lines",
    "read_module",
    "read_record",
    "read_text",
    "reason_of",
    "renumbered",
    "results_in",
    "results_of",
    "sha256_of",
    "shortened",
    "shown",
    "steps_as_lists",
    "traits_of",
    "uncountable",
    "visible",
    "whole_folder",
    "why_no_model",
    "without_part",
    "write_manifest",
    "write_tensors",
    "write_whole",
]

_LAZY = {
    "BlockModel": "pdtrim_core.model.block_model",
    "HiddenStates": "pdtrim_core.api.score_context",
    "PruneContext": "pdtrim_core.api.prune_context",
    "PairBatch": "pdtrim_core.api.recovery_context",
    "RoutedTokens": "pdtrim_core.api.routed_tokens",
    "PartModule": "pdtrim_core.model.block_parts",
    "QuantizedWeights": "pdtrim_core.execution.quantized_weights",
    "RecoveredWeights": "pdtrim_core.execution.recovered_weights",
    "RecoveryContext": "pdtrim_core.api.recovery_context",
    "ScoreContext": "pdtrim_core.api.score_context",
    "SelectionContext": "pdtrim_core.api.selection_context",
    "Student": "pdtrim_core.api.distillation",
    "TeacherBatch": "pdtrim_core.api.distillation",
    "TeacherBatches": "pdtrim_core.api.distillation",
    "TokenBatch": "pdtrim_core.api.score_context",
    "FirstTokens": "pdtrim_core.execution.first_tokens",
    "LayerTokens": "pdtrim_core.execution.stage_walk",
    "WalkedLayer": "pdtrim_core.execution.stage_walk",
    "MappedWeights": "pdtrim_core.model.mapped_weights",
    "drawn": "pdtrim_core.execution.distributions",
    "auto_class_of": "pdtrim_core.model.auto_class",
    "why_no_model": "pdtrim_core.model.auto_class",
    "experts_in": "pdtrim_core.model.experts",
    "head_dim_of": "pdtrim_core.model.narrowing",
    "load_modules": "pdtrim_core.model.weights",
    "narrowed": "pdtrim_core.model.narrowing",
    "renumbered": "pdtrim_core.model.renumbering",
    "steps_as_lists": "pdtrim_core.model.renumbering",
    "traits_of": "pdtrim_core.model.renumbering",
    "uncountable": "pdtrim_core.model.renumbering",
    "pattern_of": "pdtrim_core.model.dtypes",
    "read_module": "pdtrim_core.model.weights",
    "without_part": "pdtrim_core.model.block_parts",
    "write_tensors": "pdtrim_core.model.weights",
    "read_first_tokens": "pdtrim_core.execution.recovered_weights",
}


def __getattr__(name: str) -> Any:
    """Import a name that needs torch on first use."""
    if name not in _LAZY:
        raise AttributeError(f"module 'pdtrim_core.api' has no attribute '{name}'")
    import importlib  # noqa: PLC0415 - only the lazy names need it

    return getattr(importlib.import_module(_LAZY[name]), name)
