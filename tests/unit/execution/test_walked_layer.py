"""A layer that a walk is at: whether a map folds into its projection, and how long its tokens can be looked at."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from pdtrim_core.api import Drop, KvOnly, PdtrimError, Plan, RecoveryContext, Removal
from pdtrim_core.testing import FAMILIES, recovery_context, tiny_model

TEXTS = [[(7 * row + 3 * column) % 256 for column in range(16)] for row in range(6)]
NOT_STRAIGHT = {"gemma3", "mixtral", "phi3", "qwen3-moe"}
"""Families with a norm behind the MLP, or without a projection that could be asked."""


def context_of(model: Any, plan: Plan) -> RecoveryContext:
    return recovery_context(model, plan, TEXTS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_mlp_makes_is_told_to_be_added_where_it_is(family: str, dtype: torch.dtype) -> None:
    context = context_of(tiny_model(family, dtype=dtype), Plan(decode=Removal([Drop(2)])))
    assert {layer.adds_what_it_makes() for layer in context.walk("decode")} == {family not in NOT_STRAIGHT}


@pytest.mark.parametrize("factor", [0.5, 0.9])
def test_a_factor_behind_the_projection_is_noticed(factor: float) -> None:
    model = tiny_model("opt")
    for block in model.blocks:
        cast("Any", block).fc2.register_forward_hook(lambda _module, _given, made: factor * made)
    # A hook of the projection itself is part of what it gives, one behind it is not.
    assert next(context_of(model, Plan()).walk("prefill")).adds_what_it_makes()
    for block in model.blocks:
        block.register_forward_hook(lambda _module, given, made: given[0] + factor * (made[0] - given[0]))
    assert not next(context_of(model, Plan()).walk("prefill")).adds_what_it_makes()


def test_the_model_is_left_without_a_hook() -> None:
    model = tiny_model("llama")
    next(context_of(model, Plan()).walk("prefill")).adds_what_it_makes()
    assert not [module for module in model.model.modules() if module._forward_hooks]


def test_a_layer_that_does_not_run_adds_nothing() -> None:
    context = context_of(tiny_model("llama"), Plan(Removal([KvOnly(3)]), Removal([Drop(2)])))
    assert [layer.layer.block for layer in context.walk("prefill") if not layer.adds_what_it_makes()] == [3]


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_layer_that_the_walk_has_left_shows_no_tokens_of_another_depth(stage: Any) -> None:
    context = context_of(tiny_model("llama"), Plan(decode=Removal([Drop(2)])))
    layers = list(context.walk(stage))
    for look in (lambda: next(layers[1].tokens()), layers[1].adds_what_it_makes):
        with pytest.raises(PdtrimError, match="a walk has left this layer"):
            look()
