"""Which models a latency benchmark times: those of a finished run, or of a published shape with a removal of the same size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.open_run import LoadedRun
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import FirstToken, Plan
from pdtrim_core.plan.plan_file import SavedPlan, plan_to_json
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.run_folder import load_plan
from pdtrim_core.timing.latency import Subject
from pdtrim_core.timing.shapes import ModelShape, random_model, read_shape

PAPER_SHARE = 0.1358
"""The share of LLaMA3.1-8B's parameters that the first row of the paper's Table 3 removes: 5 blocks of 32."""
Dtype = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Subjects:
    """The models to time, the dense one first, and what is said about all of them."""

    all: tuple[Subject, ...]
    plan: dict[str, Any] | None
    first_token: FirstToken
    random_weights: bool


@dataclass(frozen=True)
class BlocksToRemove:
    """How many blocks to remove from a published shape; None leaves decode's number to the paper, and half of it to prefill."""

    decode: int | None = None
    prefill: int | None = None
    plan: Path | None = None
    like: Outcome | None = None


def subjects_of_run(run: LoadedRun, dtype: Dtype | None = None) -> Subjects:
    """Return the models of a finished run, converted where another number format is requested."""
    dense, replaced = _converted(run.dense, dtype), run.replaced
    if replaced is not None:
        both = (Subject("dense", dense, Plan(), {}), Subject("unified", _converted(replaced, dtype), Plan(), {}))
        return Subjects(both, None, "decode", random_weights=False)
    saved = run.outcome.plan
    _refuse_selections(saved, run.path)
    modules = {key: module.to(dense.device, _dtype_of(dense)) for key, module in run.modules_of("unified").items()}
    return _subjects(dense, saved.plan, modules, saved.first_token, random_weights=False)


def subjects_of_shape(given: str, budget: BlocksToRemove, host: PluginHost, dtype: Dtype | None = None) -> Subjects:
    """Return models of a published shape with random weights, made on the accelerator if there is one.

    Everything is checked before any weight is made.
    """
    device = _best_device()
    fitting = torch.float32 if device.type == "cpu" else torch.bfloat16
    shape = read_shape(given, host, getattr(torch, dtype) if dtype else fitting)
    plan, first_token = plan_for(shape, budget)
    return _subjects(random_model(shape, host, device), plan, {}, first_token, random_weights=True)


def plan_for(shape: ModelShape, budget: BlocksToRemove) -> tuple[Plan, FirstToken]:
    """Return the plan that a shape is timed under, and who makes the first token.

    Time does not depend on which blocks go, so the drops are in the middle. Raises `PdtrimError` for one that does not fit.
    """
    count = len(shape.sizes.blocks)
    if budget.plan is not None:
        saved = load_plan(budget.plan)
        _refuse_modules(saved, budget.plan)
        _refuse_selections(saved, budget.plan)
        if saved.block_count != count:
            raise PdtrimError(
                f"{budget.plan} is a plan for {saved.block_count} blocks ({saved.model}), but {shape.name} has {count}: give "
                "--blocks N instead"
            )
        return saved.plan, saved.first_token
    decode, prefill, first_token = _counts(shape, budget)
    if not 0 < decode < count or not 0 <= prefill <= decode:
        raise PdtrimError(
            f"{shape.name} has {count} blocks: decode can lose 1 to {count - 1} of them and prefill at most as many, "
            f"not {decode} and {prefill}"
        )
    first = (count - decode) // 2
    drops = [Drop(first + number) for number in range(decode)]
    plan = Plan(prefill=Removal(drops[:prefill]), decode=Removal(drops))
    return (plan.truncated_prefill(count) if first_token == "decode" else plan), first_token


def _counts(shape: ModelShape, budget: BlocksToRemove) -> tuple[int, int, FirstToken]:
    """Return how many blocks decode and prefill lose."""
    if budget.like is None or budget.decode is not None:
        decode = shape.sizes.blocks_for(PAPER_SHARE) if budget.decode is None else budget.decode
        return decode, decode // 2 if budget.prefill is None else budget.prefill, "decode"
    saved = budget.like.plan
    both = Removal(element for element in saved.plan.prefill if element in saved.plan.decode)
    if not saved.plan.decode.blocks_removed:
        raise PdtrimError("the run removes no whole blocks, which is what is carried over to another shape: give --blocks N")
    return saved.plan.decode.blocks_removed, both.blocks_removed, saved.first_token


def _refuse_modules(saved: SavedPlan, path: Path) -> None:
    others = [str(element) for element in saved.plan.decode if not isinstance(element, Drop)]
    if others:
        raise PdtrimError(f"{path} has {others[0]}, whose module a random model does not have: give --blocks N instead")


def _refuse_selections(saved: SavedPlan, path: Path) -> None:
    if saved.plan.selections:
        raise PdtrimError(
            f"{path}: decode reads only some of a prompt's K/V in some blocks, and what is timed reads all of them: "
            "its costs are in the result table"
        )


def _subjects(
    dense: BlockModel, plan: Plan, modules: Mapping[Any, Any], first_token: FirstToken, *, random_weights: bool
) -> Subjects:
    unified = Plan.unified(plan.decode)
    subjects = (
        Subject("dense", dense, Plan(), {}, first_token),
        Subject("unified", dense, unified, modules, first_token),
        Subject("prefill", dense, plan, modules, first_token),
        Subject("decode", dense, plan, modules, first_token),
    )
    return Subjects(subjects, plan_to_json(plan), first_token, random_weights)


def _converted(model: BlockModel, dtype: Dtype | None) -> BlockModel:
    """Return a model in another number format; its sizes and shrunk blocks must not have been read before."""
    if dtype:
        model.model.to(getattr(torch, dtype))
    return model


def _dtype_of(model: BlockModel) -> torch.dtype:
    dtype: torch.dtype = next(model.model.parameters()).dtype
    return dtype


def _best_device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.get_default_device()
