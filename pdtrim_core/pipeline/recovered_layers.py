"""What recovery gave to a pair as a stage alone has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan, RecoveredPart


def alone(plan: Plan, modules: Mapping[Any, nn.Module], block_count: int, stage: Stage) -> dict[RecoveredPart, nn.Module]:
    """Return the recovered parts of a plan's stage as they are in the plan by which that stage is a model of its own."""
    single = Plan.unified(plan.decode if stage == "decode" else plan.prefill_alone(block_count))
    ran = {layer.block for layer in plan.layers(stage, block_count) if layer.runs}
    found: dict[RecoveredPart, nn.Module] = {}
    if stage == "prefill" and FirstTokensOf(plan) in modules:
        found[FirstTokensOf(single)] = modules[FirstTokensOf(plan)]
    for layer in single.layers("decode", block_count):
        module = modules.get(LayerOf(plan, stage, layer.block))
        if module is not None and layer.block in ran:
            found.update({LayerOf.at(single, either, layer): module for either in STAGES})
    return found
