"""pdtrim-core prunes a language model twice, once for prefill and once for decode, with methods that anyone can plug in.

These are the names for those who use it from Python; what a plugin is made of is in `pdtrim_core.api`. Names that need torch
import it when they are first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.plan.diagram import draw_diagram
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.record import RunRecord, read_record
from pdtrim_core.results.task_results import TaskResult, results_in

if TYPE_CHECKING:
    from pdtrim_core.comparing.notebook import compare
    from pdtrim_core.pipeline.apply import ModelPair, apply
    from pdtrim_core.pipeline.open_run import LoadedRun, load_run
    from pdtrim_core.pipeline.pipeline import run

__all__ = [
    "Drop",
    "DropPart",
    "Element",
    "KvOnly",
    "LoadedRun",
    "Merge",
    "ModelPair",
    "Outcome",
    "PdtrimError",
    "Plan",
    "PlanError",
    "PluginError",
    "PluginHost",
    "Recipe",
    "RecipeError",
    "Removal",
    "RunCache",
    "RunRecord",
    "SavedPlan",
    "Shrink",
    "TaskResult",
    "apply",
    "compare",
    "draw_diagram",
    "hookimpl",
    "load_plugins",
    "load_run",
    "read_record",
    "results_in",
    "run",
]

_LAZY = {
    "LoadedRun": "pdtrim_core.pipeline.open_run",
    "ModelPair": "pdtrim_core.pipeline.apply",
    "apply": "pdtrim_core.pipeline.apply",
    "compare": "pdtrim_core.comparing.notebook",
    "load_run": "pdtrim_core.pipeline.open_run",
    "run": "pdtrim_core.pipeline.pipeline",
}


def __getattr__(name: str) -> Any:
    """Import a public name that needs torch on first use; for a name of 0.1, raise with the place where it is now."""
    import importlib  # noqa: PLC0415 - only the lazy names need it

    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if not name.startswith("_"):
        moved = importlib.import_module("pdtrim_core.host.compatibility").where_name_went(name)
        if moved:
            # Python would replace the text of an AttributeError in `from pdtrim_core import ...` by its own.
            raise ImportError(f"pdtrim_core.{name} {moved}")
    raise AttributeError(f"module 'pdtrim_core' has no attribute '{name}'")
