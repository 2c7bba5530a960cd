"""A model with the blocks of a stage in place of its own: its own forward equals the plan, and everything is put back."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pdtrim_core.api import Drop, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.stage_modules import Modules, Step, as_stage, checked_modules, module_of, steps_of
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import BLOCKS, MERGE, PLANS, TAILS, replacements

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from pdtrim_core.plan.elements import Stage

IDS = torch.arange(40)[None] * 7 % 250
ALL_PLANS = {**PLANS, **TAILS}
STAGES: tuple[Stage, ...] = ("prefill", "decode")
CLOSE = 1e-4
"""Rounding of float32 over six blocks, where logits are around 10; a wrong block or mask gives whole numbers."""


def logits_of(model: BlockModel) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.model(input_ids=IDS, use_cache=False).logits[0]
    return logits


def step_by_step(model: BlockModel, steps: Sequence[Step]) -> torch.Tensor:
    """What the steps make of the tokens one after another, each with the arguments of the block that it is like."""
    with torch.inference_mode():
        recording = model.record(IDS)
        hidden_BTD = recording.hidden_BTD
        for step in steps:
            if step.layer.runs:
                hidden_BTD = model.run(step.layer.like, hidden_BTD, recording.calls, step.module)
        return torch.cat(list(model.logits(hidden_BTD[0])))


def state_of(model: BlockModel, modules: Modules) -> list[Any]:
    """All that may change of a model and of the modules beside it: what each object has, and a copy of the config."""
    found = [module for root in (model.model, *modules.values()) for module in root.modules()]
    return [copy.deepcopy(vars(model.config)), *({**vars(module), "_modules": dict(module._modules)} for module in found)]


# Steps


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ALL_PLANS)
def test_steps_are_the_layers_of_the_plan_with_what_each_runs(name: str, stage: Stage) -> None:
    model, plan = tiny_llama(), ALL_PLANS[name]
    modules = replacements(model)
    steps = steps_of(model, plan, stage, modules)
    assert tuple(step.layer for step in steps) == plan.layers(stage, BLOCKS)
    for step in steps:
        of_plan = model.blocks[step.layer.block] if step.layer.merge is None else modules[step.layer.merge]
        assert step.module is of_plan


def test_a_shrunk_layer_runs_a_block_of_its_own_that_is_narrower() -> None:
    model = tiny_llama()
    plan = Plan.unified(Removal([Shrink(2, "mlp", (0, 5, 7)), Shrink(4, "attention", (1,))]))
    before = model.fingerprint
    steps = steps_of(model, plan, "decode", {})
    widths = [step.module.get_submodule("mlp.down_proj").in_features for step in steps]
    heads = [step.module.get_submodule("self_attn.k_proj").out_features for step in steps]
    assert widths == [48, 48, 45, 48, 48, 48]
    assert heads == [16, 16, 16, 16, 8, 16]
    assert [step.module is block for step, block in zip(steps, model.blocks, strict=True)] == [
        True,
        True,
        False,
        True,
        False,
        True,
    ]
    del vars(model)["fingerprint"]
    assert model.fingerprint == before
    assert module_of(model, plan, "decode", steps[2].layer, {}) is steps[2].module


@pytest.mark.parametrize("plan", [Plan.unified(Removal([MERGE])), Plan(decode=Removal([Drop(0), MERGE]))])
@pytest.mark.parametrize("modules", [None, {}, {Merge(keep=1, drop=0): nn.Identity()}])
def test_a_merge_without_its_module_is_refused(plan: Plan, modules: Modules | None) -> None:
    with pytest.raises(PdtrimError) as caught:
        checked_modules(plan, modules)
    assert str(caught.value) == "the plan has 2+3, but no merged block was given for it"


@pytest.mark.parametrize("name", ALL_PLANS)
def test_modules_that_are_given_come_back_those_of_other_plans_too(name: str) -> None:
    modules = replacements(tiny_llama())
    assert checked_modules(ALL_PLANS[name], modules) == modules


# The model as a stage


@pytest.mark.numeric
@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_model_s_own_forward_equals_the_plan(family: str, stage: Stage) -> None:
    model = tiny_model(family)
    modules = replacements(model)
    for name, plan in ALL_PLANS.items():
        steps = steps_of(model, plan, stage, modules)
        expected = step_by_step(model, steps)
        with as_stage(model, steps):
            found = logits_of(model)
        assert (name, float((found - expected).abs().max())) <= (name, CLOSE)


@pytest.mark.numeric
def test_the_dense_model_and_what_is_left_of_it_are_told_apart() -> None:
    model = tiny_llama()
    dense = logits_of(model)
    with as_stage(model, steps_of(model, Plan(), "decode", {})):
        assert torch.equal(logits_of(model), dense)
    for block in range(BLOCKS):
        with as_stage(model, steps_of(model, Plan.unified(Removal([Drop(block)])), "decode", {})):
            assert not torch.allclose(logits_of(model), dense, atol=0.1)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", ["gemma3", "llama", "opt", "qwen2"])
def test_each_step_has_its_own_entry_in_the_cache_and_in_the_config_s_lists(family: str, stage: Stage) -> None:
    from transformers import DynamicCache

    model = tiny_model(family)
    modules = replacements(model)
    types = list(getattr(model.config, "layer_types", None) or [])
    for plan in ALL_PLANS.values():
        steps, cache = steps_of(model, plan, stage, modules), DynamicCache()
        with as_stage(model, steps), torch.inference_mode():
            assert model.config.num_hidden_layers == len(steps)
            if types:
                assert model.config.layer_types == [types[step.layer.like] for step in steps]
            model.model(input_ids=IDS, past_key_values=cache, use_cache=True)
            assert [layer.get_seq_length() for layer in cache.layers] == [IDS.shape[1]] * len(steps)


# Putting back


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("family", ["gemma3", "llama", "opt"])
def test_everything_is_put_back(family: str, stage: Stage) -> None:
    model = tiny_model(family)
    modules = replacements(model)
    before, dense = state_of(model, modules), logits_of(model)
    for plan in ALL_PLANS.values():
        with as_stage(model, steps_of(model, plan, stage, modules)):
            logits_of(model)
            assert not same(state_of(model, modules), before) or plan.layers(stage, BLOCKS) == Plan().layers(stage, BLOCKS)
        assert same(state_of(model, modules), before)
    assert torch.equal(logits_of(model), dense)


def same(one: Any, other: Any) -> bool:
    """Whether two states have the same objects in the same places; a config's values may be equal ones."""
    return len(one) == len(other) and one[0] == other[0] and all(map(same_values, one[1:], other[1:]))


def same_values(one: dict[str, Any], other: dict[str, Any]) -> bool:
    inner = one["_modules"], other["_modules"]
    return one.keys() == other.keys() and all(
        a.keys() == b.keys() and all(a[key] is b[key] or (isinstance(a[key], int) and a[key] == b[key]) for key in a)
        for a, b in ((drop_modules(one), drop_modules(other)), inner)
    )


def drop_modules(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "_modules"}


class Broken(nn.Module):
    """A block that raises when it runs."""

    def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
        raise ZeroDivisionError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("family", ["gemma3", "llama", "opt"])
def test_everything_is_put_back_after_an_exception(family: str, error: type[BaseException]) -> None:
    model = tiny_model(family)
    modules = replacements(model)
    before, dense = state_of(model, modules), logits_of(model)
    for plan in ALL_PLANS.values():
        with pytest.raises(error), as_stage(model, steps_of(model, plan, "prefill", modules)):
            raise error
        assert same(state_of(model, modules), before)
    assert torch.equal(logits_of(model), dense)


def test_everything_is_put_back_after_a_block_that_fails() -> None:
    model = tiny_llama()
    modules: dict[Merge | Shrink, nn.Module] = {MERGE: Broken()}
    before = state_of(model, modules)
    with (
        pytest.raises(ZeroDivisionError),
        as_stage(model, steps_of(model, Plan.unified(Removal([Drop(0), MERGE])), "decode", modules)),
    ):
        logits_of(model)
    assert same(state_of(model, modules), before)


def test_everything_is_put_back_where_the_stage_cannot_be_entered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    modules = replacements(model)
    before = state_of(model, modules)

    def fails(self: BlockModel, module: nn.Module) -> None:
        raise ZeroDivisionError

    steps = steps_of(model, PLANS["K/V only"], "prefill", modules)
    with monkeypatch.context() as patched:
        patched.setattr(type(model), "passing_by", fails)
        with pytest.raises(ZeroDivisionError), as_stage(model, steps):
            pytest.fail("the stage was entered")
    assert same(state_of(model, modules), before)


# One stage inside another


def nested() -> Iterator[tuple[str, str]]:
    names = ("decode-only drop", "unified drops at both ends", "unified merge", "frozen merge")
    yield from ((outer, inner) for outer in names for inner in names)


@pytest.mark.numeric
@pytest.mark.parametrize(("outer", "inner"), list(nested()))
def test_of_nested_stages_the_inner_one_runs_and_the_outer_one_comes_back(outer: str, inner: str) -> None:
    model = tiny_llama()
    modules = replacements(model)
    before, dense = state_of(model, modules), logits_of(model)
    stages = [steps_of(model, PLANS[name], "decode", modules) for name in (outer, inner)]
    expected = [step_by_step(model, steps) for steps in stages]
    with ExitStack() as stack:
        stack.enter_context(as_stage(model, stages[0]))
        own = logits_of(model)
        assert float((own - expected[0]).abs().max()) <= CLOSE
        with as_stage(model, stages[1]):
            assert float((logits_of(model) - expected[1]).abs().max()) <= CLOSE
        assert torch.equal(logits_of(model), own)
    assert same(state_of(model, modules), before)
    assert torch.equal(logits_of(model), dense)


def test_an_exception_in_a_nested_stage_puts_both_back() -> None:
    model = tiny_llama()
    modules = replacements(model)
    before = state_of(model, modules)
    outer, inner = (steps_of(model, PLANS[name], "prefill", modules) for name in ("K/V only", "unified merge"))
    with pytest.raises(ZeroDivisionError), as_stage(model, outer), as_stage(model, inner):
        _ = 1 / 0
    assert same(state_of(model, modules), before)
