"""Recovered layers of a pair as each stage alone has them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.plan.elements import Removal, Stage
from pdtrim_core.plan.plan import LayerOf, Plan


def alone(plan: Plan, layers: Mapping[LayerOf, nn.Module], block_count: int) -> dict[LayerOf, nn.Module]:
    """Return the recovered layers of a plan as they are in the plans by which either stage is a model of its own."""
    found: dict[LayerOf, nn.Module] = {}
    of_stages: tuple[tuple[Stage, Removal], ...] = (
        ("prefill", plan.prefill_alone(block_count)),
        ("decode", plan.decode),
    )
    for stage, removal in of_stages:
        single = Plan.unified(removal)
        for layer in single.layers("decode", block_count):
            module = layers.get(LayerOf(plan, stage, layer.block))
            fitting = stage == "decode" or any(
                one.block == layer.block and one.runs for one in plan.layers("prefill", block_count)
            )
            if module is not None and fitting and single != plan:
                found.update({LayerOf.at(single, either, layer): module for either in STAGES})
    return found
