"""The parameters that a plan is said to keep are those of the exported models, for random plans."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pdtrim_core.api import BlockModel, Drop, Element, KvOnly, Merge, Plan, Removal, Shrink
from pdtrim_core.testing import tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.vllm import Vllm
from tests.unit.plugins.exported import export, parameters_of, read_back

BLOCKS = 6


@cache
def model_of(family: str, *, tied: bool) -> BlockModel:
    return tiny_model(family, tie_word_embeddings=tied)


@st.composite
def removals(draw: st.DrawFn, model: BlockModel) -> Removal:
    """Draw what decode loses: of each block nothing, all, some heads or channels, or its merging with those behind it."""
    elements: list[Element] = []
    block = 0
    while block < BLOCKS:
        kind = draw(st.sampled_from(["run", "run", "drop", "merge", "shrink"]))
        run = draw(st.integers(2, 3))
        if kind == "drop" and len(elements) < BLOCKS - 1:
            elements.append(Drop(block))
        elif kind == "merge" and block + run <= BLOCKS:
            ends = (block, block + run - 1)
            elements.append(Merge(*(ends if draw(st.booleans()) else ends[::-1])))
            block += run - 1
        elif kind == "shrink":
            for part, most in (("attention", 1), ("mlp", 40)):
                if model.units(block).has(part) and draw(st.booleans()):
                    elements.append(Shrink(block, part, tuple(range(draw(st.integers(1, most))))))  # type: ignore[arg-type]
        block += 1
    return Removal(elements) if len(Plan.unified(Removal(elements)).slots(BLOCKS)) else Removal(elements[1:])


@pytest.mark.parametrize("family", ["llama", "qwen2", "opt", "mixtral", "gpt-neox"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(data=st.data())
def test_a_plan_keeps_as_many_parameters_as_its_checkpoint_has(family: str, data: st.DataObject) -> None:
    model = model_of(family, tied=data.draw(st.booleans()))
    plan = Plan.unified(data.draw(removals(model)))
    with tempfile.TemporaryDirectory() as folder:
        export(Checkpoints(), model, plan, Path(folder))
        assert parameters_of(read_back(Path(folder) / "decode")) == model.sizes.kept_parameters(plan, "decode")


@st.composite
def pairs(draw: st.DrawFn) -> Plan:
    """Draw a pair of stages: prefill loses some of what decode does, and has of some of decode's blocks the K/V alone."""
    decode: list[Element] = []
    block = 0
    while block < BLOCKS:
        kind = draw(st.sampled_from(["run", "run", "drop", "merge"]))
        if kind == "drop" and len(decode) < BLOCKS - 1:
            decode.append(Drop(block))
        elif kind == "merge" and block + 2 <= BLOCKS:
            decode.append(Merge(block, block + 1) if draw(st.booleans()) else Merge(block + 1, block))
            block += 1
        block += 1
    prefill = [e for e in decode if draw(st.booleans())]
    kept_in_prefill = [e for e in decode if isinstance(e, Merge) and e not in prefill]
    prefill += [KvOnly(e.blocks[0]) for e in kept_in_prefill if draw(st.booleans())]
    untouched = [b for b in range(BLOCKS) if not any(b in e.blocks for e in decode)]
    prefill += [KvOnly(b) for b in untouched if draw(st.integers(0, 3)) == 0]
    return Plan(prefill=Removal(prefill), decode=Removal(decode))


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(plan=pairs(), tied=st.booleans())
def test_a_pair_keeps_as_many_parameters_as_its_checkpoints_have(family: str, plan: Plan, tied: bool) -> None:
    model = model_of(family, tied=tied)
    with tempfile.TemporaryDirectory() as folder:
        export(Vllm(), model, plan, Path(folder))
        prefill, decode = (read_back(Path(folder) / name) for name in ("prefill", "decode"))
    assert parameters_of(decode) == model.sizes.kept_parameters(plan, "decode")
    assert parameters_of(prefill) == model.sizes.kept_parameters(plan.truncated_prefill(BLOCKS), "prefill")
