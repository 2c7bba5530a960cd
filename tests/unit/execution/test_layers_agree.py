"""For random plans, what costs count, what scoring and the two phases run, and what exporters write is one and the same."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from torch import nn

from pdtrim_core.api import BlockModel, Drop, Element, KvOnly, Merge, Plan, Removal, Shrink, load_modules
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.weights import MODULES
from pdtrim_core.plan.elements import Stage
from pdtrim_core.testing import tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.checkpoint_folder import Storage, write_checkpoint
from pdtrim_plugins.exporters.stages import Parts, StoredBlock, decode_blocks, prefill_blocks

BLOCKS = 6


@cache
def model_of(family: str) -> BlockModel:
    return tiny_model(family)


@st.composite
def decodes(draw: st.DrawFn) -> list[Element]:
    """Draw what decode loses: blocks, runs of two or three, heads and channels; at least one block stays."""
    elements: list[Element] = []
    block = 0
    while block < BLOCKS:
        kind = draw(st.sampled_from(["run", "drop", "merge", "shrink"]))
        last = block + draw(st.integers(1, 2))
        if kind == "merge" and last < BLOCKS:
            elements.append(draw(st.sampled_from([Merge(block, last), Merge(last, block), Merge(block, last, "frozen")])))
            block = last
        elif kind == "drop" and len(elements) < BLOCKS - 1:
            elements.append(Drop(block))
        elif kind == "shrink":
            found = [Shrink(block, "attention", (1,)), Shrink(block, "mlp", (0, 3))]
            elements += draw(st.sampled_from([found, found[:1], found[1:]]))
        block += 1
    return elements if len(elements) < BLOCKS or not all(isinstance(e, Drop) for e in elements) else elements[1:]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Draw a lawful plan: at each layer of decode prefill does the same, less, the K/V alone, or loses other channels."""
    decode = Removal(draw(decodes()))
    prefill: list[Element] = [e for e in decode if isinstance(e, Drop) and draw(st.booleans())]
    for layer in Plan(decode=decode).layers("decode", BLOCKS):
        does = draw(st.sampled_from(["run", "same", "kv-only", "channels"]))
        if does == "same":
            prefill += [layer.merge] if layer.merge else layer.shrinks
        elif does == "kv-only":
            prefill.append(KvOnly(layer.block))
        elif does == "channels":
            prefill.append(Shrink(layer.blocks[-1], "mlp", (2, 5, 7)))
    plan = Plan(Removal(prefill), decode)
    return plan.truncated_prefill(BLOCKS) if draw(st.booleans()) else plan


def numbers_in(modules: Iterable[nn.Module]) -> int:
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def kv_numbers(model: BlockModel, module: nn.Module) -> int:
    return numbers_in(module.get_submodule(name) for name in model.layout.kv)


def counted(model: BlockModel, plan: Plan, stage: Stage) -> int:
    """What costs count of the blocks."""
    outside = model.sizes.parameters - sum(block.parameters for block in model.sizes.blocks)
    if stage == "prefill" and plan.prefill and plan == plan.truncated_prefill(BLOCKS):
        outside -= model.sizes.own_head
    return model.sizes.kept_parameters(plan, stage) - outside


def run_in_two_phases(model: BlockModel, two_phase: TwoPhaseModel, stage: Stage) -> int:
    """What the blocks hold that the model has while a stage runs: of those that pass by, what makes their K/V."""
    held: list[int] = []
    calls = iter(("prefill", "decode"))

    def look(*_: Any) -> None:
        if next(calls, None) == stage:
            steps = two_phase._prefill_steps if stage == "prefill" else two_phase._decode_steps
            there = list(model.model.get_submodule(model.layout.blocks))
            assert there == [step.module for step in steps]
            held.extend(numbers_in([block]) if "forward" not in vars(block) else kv_numbers(model, block) for block in there)

    hook = model.model.register_forward_pre_hook(look)
    try:
        two_phase.continuation_logits([3, 1, 4, 1, 5], [9])
    finally:
        hook.remove()
    return sum(held)


def run_in_one_pass(staged: StagedModel, stage: Stage) -> list[tuple[int, int]]:
    """Which blocks' arguments scoring calls its modules with, and how much these hold."""
    branches = [place.prefill if stage == "prefill" else place.decode for place in staged.path]
    return [(block, numbers_in([module or staged._model.blocks[block]])) for branch in branches for block, module in branch]


def running(plan: Plan, two_phase: TwoPhaseModel, stage: Stage) -> list[tuple[int, int]]:
    """The same of the two phases, up to decode's last block, where scoring ends."""
    end = plan.layers("decode", BLOCKS)[-1].blocks[-1]
    steps = two_phase._prefill_steps if stage == "prefill" else two_phase._decode_steps
    return [(step.layer.like, numbers_in([step.module])) for step in steps if step.layer.runs and step.layer.block <= end]


def written(model: BlockModel, stored: list[StoredBlock], folder: Path) -> int:
    """How many numbers a checkpoint has of its blocks."""
    folder.mkdir()
    write_checkpoint(folder, model, model.model.config, stored, Storage("auto", 10**9))
    with safe_open(folder / "model.safetensors", "pt") as weights:
        names = [name for name in weights.keys() if name.startswith(f"{model.layout.blocks}.")]  # noqa: SIM118 - no mapping
        return sum(weights.get_tensor(name).numel() for name in names)


@pytest.mark.parametrize("family", ["llama", "qwen3"])
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(plan=plans())
def test_costs_scoring_two_phases_and_exports_have_the_same_layers(family: str, plan: Plan) -> None:
    model = model_of(family)
    with TemporaryDirectory() as name:
        out = Path(name)
        run_with_plan(model, plan, out)
        parts, modules = Parts(model, out / MODULES), load_modules(plan, model, out / MODULES)
        stored = {"prefill": prefill_blocks(parts, plan).stored, "decode": decode_blocks(parts, plan)}
        on_disk = {stage: written(model, blocks, out / stage) for stage, blocks in stored.items()}
    staged, two_phase = (
        StagedModel(PrefixCache(model, ExecutionOptions(budget=0)), plan, modules),
        TwoPhaseModel(model, plan, modules),
    )
    stages: tuple[Stage, ...] = ("prefill", "decode")
    for stage in stages:
        assert run_in_two_phases(model, two_phase, stage) == counted(model, plan, stage) == on_disk[stage]
        assert run_in_one_pass(staged, stage) == running(plan, two_phase, stage)
