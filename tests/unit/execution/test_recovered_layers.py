"""Layers whose weights were recovered, in each stage its own: one pass agrees with two phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, KvOnly, LayerOf, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.stage_modules import changed_weights, module_of, with_weights
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import (
    BLOCKS,
    FAMILIES_AND_KV,
    MERGE,
    PLANS,
    TAILS,
    replacements,
    some_items,
    two_phase_gaps,
    two_phase_sums,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pdtrim_core.api import BlockModel
    from pdtrim_core.plan.elements import Stage
    from pdtrim_core.plan.plan import FirstToken

pytestmark = pytest.mark.numeric


def recovered(model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module], *, kv: bool) -> dict[Any, nn.Module]:
    """The modules of a plan, and all its layers with weights that are off, each stage's in another way."""
    found = dict(modules)
    # Norms of K are given heads, not tokens, and are not recovered.
    norms = tuple(name for name in model.layout.kv if name.endswith("k_norm"))
    # Where Q, K and V are one projection, only what stands behind attention is free of K/V.
    fixed = norms if kv else (model.layout.kv or ("input_layernorm", "self_attn", "attention"))
    stages: tuple[Stage, ...] = ("prefill", "decode")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        for stage in stages:
            for layer in plan.layers(stage, model.block_count):
                start = module_of(model, plan, stage, layer, modules)
                changed = {
                    name: weight + 0.05 * torch.randn_like(weight)
                    for name, weight in start.named_parameters()
                    if not name.startswith(fixed)
                }
                found[LayerOf.at(plan, stage, layer)] = with_weights(start, changed)
    return found


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize(("family", "kv"), FAMILIES_AND_KV)
def test_one_pass_agrees_with_two_phases_where_both_stages_have_weights_of_their_own(
    family: str, first_token: FirstToken, kv: bool
) -> None:
    model = tiny_model(family)
    items = [*some_items()[2:4], *some_items()[-1:]]
    plans = {**PLANS, **(TAILS if first_token == "decode" else {})}
    gaps = two_phase_gaps(model, plans, lambda plan: recovered(model, plan, replacements(model), kv=kv), items, first_token)
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}


def test_recovered_weights_change_what_a_plan_scores_and_no_other_plan() -> None:
    model, plan = tiny_llama(), Plan(Removal([KvOnly(4)]), Removal([Drop(2)]))
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    modules = recovered(model, plan, {}, kv=True)
    items = some_items()
    assert StagedModel(cache, plan, modules).loglikelihoods(items) != StagedModel(cache, plan).loglikelihoods(items)
    other = Plan.unified(plan.decode)
    assert StagedModel(cache, other, modules).loglikelihoods(items) == StagedModel(cache, other).loglikelihoods(items)
    assert StagedModel(cache, Plan(), modules).loglikelihoods(items) == StagedModel(cache, Plan()).loglikelihoods(items)


@pytest.mark.parametrize("name", TAILS)
def test_the_model_is_left_as_it_was(name: str) -> None:
    model = tiny_llama()
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    before = StagedModel(cache, Plan()).loglikelihoods(some_items())
    StagedModel(cache, TAILS[name], recovered(model, TAILS[name], replacements(model), kv=True)).loglikelihoods(some_items())
    assert not [module for block in model.blocks for module in block.modules() if "forward" in vars(module)]
    cache.forget()
    assert StagedModel(cache, Plan()).loglikelihoods(some_items()) == before


def test_a_recovered_module_shares_what_did_not_change() -> None:
    model = tiny_llama()
    block: Any = model.blocks[1]
    changed: Any = with_weights(block, {"mlp.down_proj.weight": torch.zeros_like(block.mlp.down_proj.weight)})
    assert list(changed_weights(changed, block)) == ["mlp.down_proj.weight"]
    assert changed.self_attn.q_proj.weight is block.self_attn.q_proj.weight
    assert float(block.mlp.down_proj.weight.abs().sum()) > 0


@pytest.mark.parametrize(("name", "shape"), [("mlp.down_proj.weight", (3, 3)), ("mlp.nowhere.weight", (32, 48))])
def test_weights_that_do_not_fit_are_refused_by_name(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(PdtrimError, match=rf"the weight {name} of shape \({shape[0]}, {shape[1]}\)"):
        with_weights(tiny_llama().blocks[0], {name: torch.zeros(shape)})


def test_a_shrunk_and_a_merged_layer_have_recovered_weights_too() -> None:
    model = tiny_llama()
    shrunk = Shrink(4, "mlp", (0, 3))
    plan = Plan(Removal(), Removal([MERGE, shrunk, Drop(0)]))
    modules = recovered(model, plan, replacements(model), kv=True)
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    staged, items = StagedModel(cache, plan, modules), some_items()[2:4]
    for found, expected in zip(staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
        assert found == pytest.approx(tuple(expected), abs=1e-3)
    assert plan.layers("decode", BLOCKS)[-2].shrinks == (shrunk,)


@pytest.mark.parametrize("prefill", [(), (0,), (2,), (0, 2)])
@pytest.mark.parametrize("part", ["self_attn.k_proj", "mlp.down_proj"])
def test_decode_reads_some_heads_of_what_prefill_makes_with_weights_of_its_own(part: str, prefill: tuple[int, ...]) -> None:
    model = tiny_llama(num_attention_heads=8, num_key_value_heads=4, head_dim=8)
    plan = Plan(Removal([Shrink(2, "attention", prefill)] if prefill else []), Removal([Shrink(2, "attention", (0, 2)), Drop(4)]))
    modules: dict[Any, nn.Module] = {}
    for layer in plan.layers("prefill", BLOCKS):
        start = module_of(model, plan, "prefill", layer, {})
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(layer.block)
            weight = start.get_parameter(f"{part}.weight")
            changed = {f"{part}.weight": weight + 0.05 * torch.randn_like(weight)}
        modules[LayerOf.at(plan, "prefill", layer)] = with_weights(start, changed)
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    staged, items = StagedModel(cache, plan, modules), some_items()[2:4]
    for found, expected in zip(staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
        assert found == pytest.approx(tuple(expected), abs=1e-3)


def test_a_shrunk_block_that_is_cut_anew_has_not_changed() -> None:
    model, plan = tiny_llama(), Plan(decode=Removal([Shrink(2, "attention", (1,)), Shrink(2, "mlp", (0, 3))]))
    layer = plan.layers("decode", BLOCKS)[2]
    start = module_of(model, plan, "decode", layer, {})
    changed = with_weights(start, {"mlp.down_proj.weight": torch.zeros_like(start.get_parameter("mlp.down_proj.weight"))})
    del start
    assert list(changed_weights(changed, module_of(model, plan, "decode", layer, {}))) == ["mlp.down_proj.weight"]
