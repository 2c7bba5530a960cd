"""A plan on a model that is already loaded: `apply(plan, model)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.recovered_weights import RECOVERED, check_recovered, load_recovered
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.files.paths import PathLike
from pdtrim_core.host.host import PluginHost, load_plugins
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES, load_modules
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.quantize import layers_in
from pdtrim_core.plan.plan import FirstToken, Plan, RecoveredPart
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.run_folder import load_plan
from pdtrim_core.wording import shortened


@dataclass(frozen=True)
class ModelPair:
    """The two stages of a plan on one model: `staged` scores them in one pass, `two_phase` generates with both, one by one."""

    staged: StagedModel
    two_phase: TwoPhaseModel
    model: BlockModel

    @property
    def plan(self) -> Plan:
        """What each stage loses."""
        return self.staged.plan

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        """Return for each item the summed log-probability (nats) of each of its choices behind the prompt."""
        for item in items:
            for number, choice in enumerate(item.choices):
                # What comes last is never read, only scored.
                self.model.check_tokens(item.prompt_of(number) + choice, f"the item '{item.name}'", more=-1)
        return self.staged.loglikelihoods(items)

    def generate(self, prompt: Sequence[int], max_new_tokens: int, *, recompute: int | None = None) -> list[int]:
        """Return the greedy continuation of a prompt; see `TwoPhaseModel.generate`."""
        return self.two_phase.generate(prompt, max_new_tokens, recompute=recompute)

    def generate_batch(self, ids_BT: Tensor, mask_BT: Tensor, **options: Any) -> Tensor:
        """Return prompts with what follows each; see `TwoPhaseModel.generate_batch`."""
        return self.two_phase.generate_batch(ids_BT, mask_BT, **options)


def apply(
    plan: Plan | SavedPlan | LoadedRun | PathLike,
    model: Any,
    *,
    modules: Modules | None = None,
    first_token: FirstToken | None = None,
    host: PluginHost | None = None,
) -> ModelPair:
    """Return a transformers model that is already loaded as the two stages of a plan.

    The result has `generate(tokens, count)`, `generate_batch(ids, mask, ...)` and `loglikelihoods(items)`, as prefill and decode
    give them together.

    `plan` may also be the folder of a run, its `plan.json`, or what `load_run` returned; merged blocks, and recovered and
    quantised layers, come from there unless `modules` are given. `model` is what transformers' `from_pretrained` returned, or the
    `dense` model of a run. `first_token` is the stage that makes the first token of an answer, instead of what the plan says; a
    plan by itself says decode. No weight of the model is changed: layers that were recovered or quantised have weights of their
    own, and the model answers as before when it is called itself. It is put into evaluation mode, without gradients.

    Raises `PdtrimError` for a model that is not loaded, for a plan that was made for other weights, for recovered or quantised
    weights that are not there or are others, and for an architecture that no plugin knows.
    """
    _check_model(model)
    host = plan.host if host is None and isinstance(plan, LoadedRun) else host
    if not isinstance(model, BlockModel):
        name = getattr(model, "name_or_path", "") or type(model).__name__
        model = BlockModel(model, None, (host or load_plugins()).find_blocks(model, name), name=name)
    if isinstance(plan, str | os.PathLike):
        folder = Path(plan)
        plan = load_plan(folder)
        modules = modules or modules_in(folder if folder.is_dir() else folder.parent, plan, model, host)
    elif isinstance(plan, LoadedRun):
        if plan.replaced is not None:
            raise PdtrimError(f"{plan.path} has no plan: its pruner replaced the whole model, which is load_run(...).replaced")
        modules = modules or modules_in(plan.path, plan.outcome.plan, model, host)
        plan = plan.outcome.plan
    if isinstance(plan, SavedPlan):
        plan.check_meets(model.name, model.fingerprint)
        if (plan.recovered or plan.formats) and not any(isinstance(key, RecoveredPart) for key in modules or {}):
            what = "recovered" if plan.recovered else "quantised"
            raise PdtrimError(
                f"this plan has {what} weights, which lie in the folder of its run: apply that folder, and give no modules"
            )
        first_token, plan = first_token or plan.first_token, plan.plan
    if not isinstance(plan, Plan):
        raise PdtrimError(f"apply takes a plan, a run or the path of one, not {type(plan).__name__}")
    first_token = first_token or "decode"
    return ModelPair(
        StagedModel(PrefixCache(model, ExecutionOptions(first_token=first_token)), plan, modules),
        TwoPhaseModel(model, plan, modules, first_token=first_token),
        model,
    )


def _check_model(model: Any) -> None:
    """Raise `PdtrimError` for what is no loaded model, such as the name of one."""
    if isinstance(model, BlockModel) or hasattr(getattr(model, "config", None), "model_type"):
        return
    if isinstance(model, str | os.PathLike):
        name = shortened(os.fspath(model))
        what = f"not the name of one: AutoModelForCausalLM.from_pretrained('{name}') loads it"
    else:
        what = f"not {type(model).__name__}"
    raise PdtrimError(f"apply takes a transformers model that is already loaded, {what}")


def modules_in(run: Path, saved: SavedPlan, model: BlockModel, host: PluginHost | None) -> Modules:
    """Return the modules of a plan, what recovery gave to it, and its quantised layers, from the folder of its run."""
    check_recovered(saved, run / RECOVERED)
    modules: dict[Any, Any] = dict(load_modules(saved.plan, model, run / MODULES))
    if saved.recovered:
        modules |= load_recovered(saved.plan, model, modules, run / RECOVERED)
    if saved.formats is None:
        return modules
    return {**modules, **layers_in(run, saved, model, modules, host or load_plugins())}
