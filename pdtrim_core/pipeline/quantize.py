"""Giving the stages of a pair the number formats of a recipe, behind its recovery."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast

from torch import Tensor, nn

from pdtrim_core.api.layer_kinds import Quantizer
from pdtrim_core.errors import blame
from pdtrim_core.execution.quantized_weights import (
    FORMATS,
    NumberFormat,
    check_quantized,
    linears_of,
    load_quantized,
    quantized_layers,
    quantized_weights,
    read_record,
    save_quantized,
)
from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.check_formats import check_layers
from pdtrim_core.pipeline.recovered_layers import alone
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import LayerOf, Plan, RecoveredPart
from pdtrim_core.plan.plan_file import SavedPlan


@dataclass(frozen=True)
class Quantized:
    """The layers of a plan that have another number format; none, and no `formats`, where all stay as they are.

    `numbers` are the weights of each stage that have one, and `stored_bytes` the bytes that they take with their scales.
    """

    plan: Plan = field(default_factory=Plan)
    layers: Mapping[LayerOf, nn.Module] = field(default_factory=dict)
    formats: Formats | None = None
    numbers: Mapping[Stage, int] = field(default_factory=dict)
    stored_bytes: Mapping[Stage, int] = field(default_factory=dict)

    def unified(self, block_count: int, modules: Modules) -> dict[RecoveredPart, nn.Module]:
        """Return what the model with decode's layers in both stages has of a pair with these layers and other modules."""
        return alone(self.plan, {**modules, **self.layers}, block_count, "decode")


def quantize(context: RunContext, model: BlockModel, plan: Plan, modules: Modules) -> Quantized:
    """Give the stages of a plan the formats of the recipe, and write their weights into its folder; `modules` are the pair's."""
    recipe, quantizer = context.recipe, context.recipe.quantizer
    if quantizer is None or not quantizer.formats:
        return Quantized()
    with context.events.step("quantise"), blame(context.host.label_of(quantizer)):
        check_layers(recipe, model, plan, modules)
        found = write_quantized(context.folder.path, model, plan, modules, quantizer, use=recipe.uses["quantizer"][0])
    for stage, scheme in quantizer.formats.items():
        bits = 8 * found.stored_bytes[stage] / found.numbers[stage]
        context.events.note(f"formats: {stage} has {scheme}, {bits:.2f} bits a weight with its scales")
    return found


def write_quantized(run: Path, model: BlockModel, plan: Plan, modules: Modules, quantizer: Quantizer, *, use: str) -> Quantized:
    """Let a quantizer give the stages of a plan its formats, and write their weights under a folder of a run.

    `use` is the name by which the quantizer is found again.
    """
    schemes = quantizer.formats
    layers: dict[LayerOf, nn.Module] = {}
    tensors: dict[Stage, dict[str, Tensor]] = {}
    numbers: dict[Stage, int] = {}
    record: dict[str, Any] = {"quantizer": use, "options": quantizer.model_dump(mode="json"), "stages": {}}
    for stage, scheme in schemes.items():
        one = NumberFormat(quantizer, scheme)
        tensors[stage] = quantized_weights(model, plan, stage, modules, one)
        layers |= quantized_layers(model, plan, stage, modules, one, tensors=tensors[stage])
        linears = [linear for found in linears_of(model, plan, stage, modules) for linear in found.linears.values()]
        numbers[stage] = sum(linear.weight.numel() for linear in linears)
        record["stages"][stage] = {"scheme": scheme, "config": quantizer.config(scheme)}
    digest = save_quantized(run / FORMATS, record, tensors)
    formats = Formats(quantizer.name, schemes.get("prefill"), schemes.get("decode"), digest)
    stored = {stage: sum(tensor.nbytes for tensor in own.values()) for stage, own in tensors.items()}
    return Quantized(plan, layers, formats, numbers, stored)


def layers_in(run: Path, saved: SavedPlan, model: BlockModel, modules: Modules, host: PluginHost) -> dict[LayerOf, nn.Module]:
    """Return the quantised layers of a saved plan from the folder of its run; `modules` are those that it has without them.

    Raises `PdtrimError` where they are not there, or are others, and where the quantizer is not installed.
    """
    if saved.formats is None:
        return {}
    folder = run / FORMATS
    check_quantized(saved, folder)
    label, quantizer = _recorded(folder, host)
    with blame(label):
        return load_quantized(saved, model, modules, folder, quantizer)


def prefill_alone(
    run: Path, saved: SavedPlan, model: BlockModel, modules: Modules, host: PluginHost
) -> dict[RecoveredPart, nn.Module]:
    """Return the layers of prefill as a model of its own, with the number format of the pair's prefill; `modules` are the pair's.

    The pair needs only the K/V of decode's last block, and its folder has no more of that block; here the block runs, and so it
    gets the format, too.
    """
    plan, count = saved.plan, model.block_count
    single, found = Plan.unified(plan.prefill_alone(count)), alone(plan, modules, count, "prefill")
    scheme = None if saved.formats is None else saved.formats.prefill
    if scheme is None:
        return found
    label, quantizer = _recorded(run / FORMATS, host)
    one, given = NumberFormat(quantizer, scheme), {**modules, **found}
    with blame(label):
        tensors = quantized_weights(model, single, "prefill", given, one)
        layers = quantized_layers(model, single, "prefill", given, one, tensors=tensors)
    return {**{replace(key, stage=stage): layer for key, layer in layers.items() for stage in STAGES}, **found}


def _recorded(folder: Path, host: PluginHost) -> tuple[str, Quantizer]:
    """Return the quantizer that a folder of formats was written by, and how it is called."""
    record = read_record(folder)
    provided = host.find("quantizer", str(record.get("quantizer")))
    return provided.label, cast("Quantizer", provided.component.model_validate(record.get("options", {})))
