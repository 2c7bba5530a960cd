"""What recovery gave to a pair as each stage alone has it, and a hash of all."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from pdtrim_core.execution.recovered_weights import STAGES, path_of
from pdtrim_core.files.checksums import sha256_of
from pdtrim_core.plan.elements import Removal, Stage
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan, RecoveredPart


def alone(plan: Plan, parts: Mapping[RecoveredPart, nn.Module], block_count: int) -> dict[RecoveredPart, nn.Module]:
    """Return the recovered parts of a plan as they are in the plans by which either stage is a model of its own."""
    found: dict[RecoveredPart, nn.Module] = {}
    of_stages: tuple[tuple[Stage, Removal], ...] = (
        ("prefill", plan.prefill_alone(block_count)),
        ("decode", plan.decode),
    )
    for stage, removal in of_stages:
        single = Plan.unified(removal)
        if stage == "prefill" and FirstTokensOf(plan) in parts:
            found[FirstTokensOf(single)] = parts[FirstTokensOf(plan)]
        for layer in single.layers("decode", block_count):
            module = parts.get(LayerOf(plan, stage, layer.block))
            fitting = stage == "decode" or any(
                one.block == layer.block and one.runs for one in plan.layers("prefill", block_count)
            )
            if module is not None and fitting and single != plan:
                found.update({LayerOf.at(single, either, layer): module for either in STAGES})
    return found


def digest_of(folder: Path) -> str:
    """Return a hash of what recovery changed, as it lies in a folder; empty where it changed nothing."""
    files = [path_of(stage, folder) for stage in STAGES]
    hashes = [f"{path.name} {sha256_of(path)}" for path in files if path.is_file()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest() if hashes else ""
