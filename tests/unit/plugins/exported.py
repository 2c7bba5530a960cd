"""What the tests of exporters share: an export of a plan, read back, and what our own stages compute."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.api import BlockModel, Element, Exporter, Plan, Removal, Shrink, load_modules
from pdtrim_core.execution.stage_modules import as_stage, steps_of
from pdtrim_core.testing.contracts.small_run import run_with_plan

TOKENS = torch.randint(0, 250, (2, 20), generator=torch.Generator().manual_seed(0))


def export(exporter: Exporter, model: BlockModel, plan: Plan | Sequence[Element], out: Path, **more: Any) -> list[Path]:
    """Let an exporter write a plan, or what both stages lose, under a folder."""
    plan = plan if isinstance(plan, Plan) else Plan.unified(Removal(plan))
    return list(exporter.export(run_with_plan(model, plan, out, **more), model, out))


def read_back(folder: Path, **options: Any) -> Any:
    """Load a checkpoint as anyone would."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    import pdtrim_plugins.checkpoints  # noqa: F401 - registers the classes

    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def logits_of(model: Any) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = model(input_ids=TOKENS, use_cache=False).logits
    return logits


def decode_logits(
    model: BlockModel, plan: Plan | Sequence[Element], out: Path, modules: Mapping[Any, nn.Module] | None = None
) -> Tensor:
    """Return what our decode stage computes, by the model's own forward over the stage's blocks.

    Its modules are the stored ones unless others are given.
    """
    plan = plan if isinstance(plan, Plan) else Plan.unified(Removal(plan))
    modules = load_modules(plan, model, out / "merges") if modules is None else modules
    with as_stage(model, steps_of(model, plan, "decode", modules)):
        return logits_of(model.model)


def parameters_of(model: Any) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def thin(model: BlockModel, block: int, units: Sequence[int]) -> list[Shrink]:
    """Return shrinks of all parts of a block that can be narrowed: the first K/V head, and channels by number."""
    found = model.units(block)
    parts = {"attention": (0,), "mlp": tuple(units)}
    return [Shrink(block, part, parts[part]) for part in ("attention", "mlp") if found.has(part)]
