"""A finished run, opened again: its outcome, its model, the modules of its plan, and the plan that each stage runs."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import get_args

from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.execution.quantized_weights import FORMATS
from pdtrim_core.execution.recovered_weights import RECOVERED, check_recovered, load_recovered
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.files.checksums import sha256_of
from pdtrim_core.files.paths import PathLike
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, REPLACED, load_modules, read_replaced
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.quantize import layers_in, prefill_alone
from pdtrim_core.pipeline.recovered_layers import alone
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.plan.plan import Plan, RecoveredPart
from pdtrim_core.plan.plan_file import plan_to_json
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import load_outcome
from pdtrim_core.results.task_results import PAIRS, Variant

BEFORE: tuple[Variant, ...] = ("unrecovered", "unquantized", "unselected")
"""The pair as it was before one of the steps of its run."""
UNQUANTIZED: tuple[Variant, ...] = ("dense", "unrecovered", "unquantized")
"""The variants whose weights have the number format of the model."""


@dataclass(frozen=True)
class LoadedRun:
    """A finished run; the model and the modules are read on first use.

    Runs that are given the same `shared` open their model once, if it is the same.
    """

    path: Path
    outcome: Outcome
    recipe: Recipe
    host: PluginHost
    shared: RunCache = field(default_factory=RunCache, repr=False, compare=False)

    @cached_property
    def dense(self) -> BlockModel:
        """The model that was pruned. Raises `PdtrimError` where its weights are not those of the run any more."""
        model = self.shared.latest("model", keys_of(self.recipe).model, lambda: open_model(self.recipe.model, self.host))
        before = self.outcome.environment.weights
        if model.fingerprint != before:
            raise PdtrimError(
                f"{self.path} is a run on {self.outcome.model} ({before[:12]}), but {model.name} has other weights now "
                f"({model.fingerprint[:12]}): run the recipe again"
            )
        return model

    @cached_property
    def modules(self) -> Modules:
        """What the pair runs: the modules of the plan by element, what recovery gave to it, and its quantised layers.

        Raises `PdtrimError` where those are not the run's own any more.
        """
        if self.replaced or not self.outcome.quantized:
            return self.unquantized
        layers = layers_in(self.path, self.outcome.plan, self.dense, self.unquantized, self.host)
        return {**self.unquantized, **layers}

    @cached_property
    def unquantized(self) -> Modules:
        """The trained or computed modules of the plan by element, and what recovery gave to it, in the format of the model.

        Raises `PdtrimError` where those are not the run's own any more.
        """
        if self.replaced:
            return {}
        saved, folder = self.outcome.plan, self.path / RECOVERED
        modules = load_modules(saved.plan, self.dense, self.path / MODULES)
        if not saved.recovered:
            return modules
        check_recovered(saved, folder)
        return {**modules, **load_recovered(saved.plan, self.dense, modules, folder)}

    def modules_of(self, variant: Variant) -> Modules:
        """Return the modules that a variant runs."""
        if variant == "dense":
            return {}
        if variant == "unrecovered":
            return {key: module for key, module in self.modules.items() if not isinstance(key, RecoveredPart)}
        if variant == "unquantized":
            return self.unquantized
        if variant in ("staged", "unselected") or self.replaced is not None:
            return self.modules
        # A single-stage model has the layers of its stage; the unified one those of decode.
        saved = self.outcome.plan
        if variant == "prefill":
            return {**self.modules, **prefill_alone(self.path, saved, self.dense, self.modules, self.host)}
        return {**self.modules, **alone(saved.plan, self.modules, self.outcome.block_count, "decode")}

    @cached_property
    def replaced(self) -> BlockModel | None:
        """The whole other model of a pruner that gave one."""
        pruner = self.recipe.pruner
        if pruner is None or not pruner.replaces_model:
            return None
        weights = read_replaced(self.path / REPLACED)
        with blame(self.host.label_of(pruner)):
            return pruner.restore(self.dense, weights)

    def model_of(self, variant: Variant) -> BlockModel:
        """Return the model whose blocks a variant runs: the dense one, or the one that replaced it."""
        return self.dense if variant == "dense" or self.replaced is None else self.replaced

    def plan_of(self, variant: Variant) -> Plan:
        """Return the plan that a variant runs on `model_of(variant)`.

        Raises `PdtrimError` for stages of a model that was replaced as a whole: they are one and the same.
        """
        if variant not in get_args(Variant):
            raise PdtrimError(f"'{variant}' is none of {', '.join(get_args(Variant))}")
        if variant == "dense" or (self.outcome.saved_plan is None and variant in ("unified", "decode")):
            return Plan()
        absent = self.outcome.why_absent(variant)
        if absent:
            raise PdtrimError(f"{self.path} {absent}")
        plan = self.outcome.plan.plan
        if variant in PAIRS:
            # K/V are selected last, so that what the pair was before it read whole prompts.
            return plan if variant == "staged" else plan.unselected
        return Plan.unified(plan.decode if variant != "prefill" else plan.prefill_alone(self.outcome.block_count))

    def two_phase(self, variant: Variant) -> TwoPhaseModel:
        """Return a variant as it is served: it generates in two phases, with a hand-over of K/V between them.

        Raises `PdtrimError` for a variant that this run does not have.
        """
        first_token = self.outcome.plan.first_token if variant in PAIRS else "decode"
        return TwoPhaseModel(self.model_of(variant), self.plan_of(variant), self.modules_of(variant), first_token=first_token)

    def plan_digest(self, variant: Variant) -> str:
        """Return a hash of what a variant runs: its plan, the modules of that plan, or the model that replaced the dense one."""
        folder = self.path / (MODULES if self.replaced is None else REPLACED)
        names = sorted(folder.glob("*.safetensors")) if self.modules_of(variant) or self._replaced_by(variant) else []
        if variant not in ("dense", "unrecovered") and not self.outcome.why_absent("unrecovered"):
            names += sorted((self.path / RECOVERED).glob("*.safetensors"))
        if variant not in UNQUANTIZED and self.outcome.quantized:
            names += sorted(file for file in (self.path / FORMATS).iterdir() if file.is_file())
        files = {path.name if path.parent.name != FORMATS else f"{FORMATS}/{path.name}": sha256_of(path) for path in names}
        what = [plan_to_json(self.plan_of(variant)), files]
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]

    def _replaced_by(self, variant: Variant) -> bool:
        return variant != "dense" and self.replaced is not None

    def same_as(self, variant: Variant) -> tuple[Variant, ...]:
        """Return a variant and all others that run the same plan on the same model; their results are the same.

        `unified` and `decode` always do; `staged`, too, where both stages lose the same. `prefill` is recovered by itself.
        """
        known: tuple[Variant, ...] = get_args(Variant) if self.outcome.saved_plan is not None else ("unified", "decode", "dense")
        known = tuple(other for other in known if other not in BEFORE)
        if variant in BEFORE:
            return (variant,)
        return variant, *(other for other in known if other != variant and self._alike(variant, other))

    def _alike(self, variant: Variant, other: Variant) -> bool:
        """Tell whether two variants run the same plan with the same modules on the same model."""
        if self.model_of(variant) is not self.model_of(other) or self.plan_of(variant) != self.plan_of(other):
            return False
        if self.outcome.quantized:
            # Stages that lose the same may have formats that differ, and the dense model has none.
            return {variant, other} == {"unified", "decode"}
        return "prefill" not in (variant, other) or bool(self.outcome.why_absent("unrecovered"))


def load_run(path: PathLike, host: PluginHost | None = None, shared: RunCache | None = None, *, trust: bool = False) -> LoadedRun:
    """Open the folder of a finished run, with the plugins that are installed unless others are given.

    Plugin files that the run names are run only with `trust`: the folder may come from somewhere else. Raises `PdtrimError` for a
    folder without a finished run, or with one of another version, and for parts that are not there.
    """
    path = Path(path)
    outcome = load_outcome(path)
    recipe = Recipe.from_data(outcome.recipe, where=str(path / "recipe.toml"), out=path, host=host, trust=trust)
    return LoadedRun(path, outcome, recipe, recipe.host, shared or RunCache())
