"""A plan on a model that is already loaded: `apply(plan, model)`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

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
from pdtrim_core.pipeline.generation import Prompt, generate
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.pipeline.quantize import layers_in
from pdtrim_core.plan.plan import FirstToken, Plan, RecoveredPart
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.results.run_folder import load_plan
from pdtrim_core.wording import shortened

NEW_TOKENS = 64
"""Tokens that follow a prompt at most, unless another number is asked for."""


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

    @overload
    def generate(self, prompt: str, max_new_tokens: int = ..., **options: Any) -> str: ...
    @overload
    def generate(self, prompt: Tensor, max_new_tokens: int = ..., **options: Any) -> Tensor: ...
    @overload
    def generate(self, prompt: Sequence[int], max_new_tokens: int = ..., **options: Any) -> list[int]: ...
    @overload
    def generate(self, prompt: Sequence[str], max_new_tokens: int = ..., **options: Any) -> list[str]: ...
    @overload
    def generate(self, prompt: Sequence[Sequence[int]], max_new_tokens: int = ..., **options: Any) -> list[list[int]]: ...
    @overload
    def generate(self, *, input_ids: Prompt, max_new_tokens: int = ..., **options: Any) -> Any: ...
    def generate(
        self,
        prompt: Prompt | None = None,
        max_new_tokens: int = NEW_TOKENS,
        *,
        input_ids: Prompt | None = None,
        attention_mask: Tensor | None = None,
        recompute: int | None = None,
        **options: Any,
    ) -> Any:
        """Return what follows a prompt, or each of several, in the form in which they were given.

        A text gives a text (which needs a tokenizer, see `apply`) and tokens give tokens, each up to its end-of-sequence token;
        lists of them give lists. A tensor `[batch, token]` gives one with the prompts in front, as transformers does, so that
        `pair.generate(**tokenizer(texts, return_tensors="pt", padding=True), do_sample=True)` works; prompts are padded on the
        left.

        Without options the likeliest token is taken each time. Options are those of transformers' `generate`, such as
        `do_sample`, `temperature`, `top_k`, `top_p`, `repetition_penalty`. `recompute`, for one prompt of tokens without options,
        is that of `TwoPhaseModel.generate`. Raises `PdtrimError` for what is no prompt, and for options that a pair cannot
        follow.
        """
        asked = input_ids if prompt is None else prompt
        if asked is None:
            raise PdtrimError("generate takes a prompt: a text, tokens, or a list of either")
        if recompute is not None:
            return self.two_phase.generate(cast("Sequence[int]", asked), max_new_tokens, recompute=recompute)
        return generate(self.two_phase, asked, max_new_tokens, mask=attention_mask, options=options)

    def generate_batch(self, ids_BT: Tensor, mask_BT: Tensor, **options: Any) -> Tensor:
        """Return prompts with what follows each; see `TwoPhaseModel.generate_batch`."""
        return self.two_phase.generate_batch(ids_BT, mask_BT, **options)


def apply(
    plan: Plan | SavedPlan | LoadedRun | PathLike,
    model: Any,
    *,
    modules: Modules | None = None,
    first_token: FirstToken | None = None,
    tokenizer: Any = None,
    host: PluginHost | None = None,
) -> ModelPair:
    """Return a transformers model that is already loaded as the two stages of a plan.

    The result has `generate(prompt, max_new_tokens, ...)`, for text and tokens, one prompt and several, and
    `loglikelihoods(items)`, as prefill and decode give them together.

    `plan` may also be the folder of a run, its `plan.json`, or what `load_run` returned; merged blocks, and recovered and
    quantised layers, come from there unless `modules` are given. `model` is what transformers' `from_pretrained` returned, or the
    `dense` model of a run. `first_token` is the stage that makes the first token of an answer, instead of what the plan says; a
    plan by itself says decode. `tokenizer` is what text is read with, where the model does not bring one as the `dense` model of
    a run does. No weight of the model is changed: layers that were recovered or quantised have weights of their own, and the
    model answers as before when it is called itself. It is put into evaluation mode, without gradients.

    Raises `PdtrimError` for a model that is not loaded, for a plan that was made for other weights, for recovered or quantised
    weights that are not there or are others, and for an architecture that no plugin knows.
    """
    _check_model(model)
    host = plan.host if host is None and isinstance(plan, LoadedRun) else host
    if not isinstance(model, BlockModel):
        name = getattr(model, "name_or_path", "") or type(model).__name__
        model = BlockModel(model, tokenizer, (host or load_plugins()).find_blocks(model, name), name=name)
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
    """Raise `PdtrimError` for what is no loaded model, such as the name of one, and for one with adapters that are not merged."""
    if hasattr(model, "merge_and_unload") or getattr(model, "_hf_peft_config_loaded", False):
        raise PdtrimError(
            "apply takes a model without adapters of PEFT, since a plan cuts the weights themselves: merge them first, with "
            "model.merge_and_unload() of a PeftModel"
        )
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
