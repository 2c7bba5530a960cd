"""K/V of blocks that prefill passes by: the old weights where nothing is missing, nearer to the dense K/V where something is."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, KvOnly, LayerOf, Merge, PdtrimError, Plan, RecoveryFacts, Removal, Shrink
from pdtrim_core.execution.recovered_weights import recovered_weights
from pdtrim_core.testing import FAMILIES, recovery_context, tiny_llama, tiny_model
from pdtrim_plugins.recoveries import KvRefit
from tests.unit.execution.test_staged_model import FUSED, MERGE, replacements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdtrim_core.api import BlockModel, RecoveryContext

pytestmark = pytest.mark.numeric

SPLIT = [family for family in FAMILIES if family not in FUSED]
EXPERTS = ("mixtral", "qwen3-moe")
TAIL = Plan(prefill=Removal([KvOnly(3), KvOnly(4), KvOnly(5)]))


def texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = Random(seed)
    return [rng.choices(range(256), k=24) for _ in range(count)]


def context_of(model: BlockModel, plan: Plan, **options: Any) -> RecoveryContext:
    return recovery_context(model, plan, texts(24), check=texts(4, seed=1), **options)


def off_dense(context: RecoveryContext) -> dict[int, float]:
    """How far the K and V of each layer that prefill passes by are from the dense ones, as a share of these."""
    norm, *names = context.model.layout.kv[:3]
    found = {}
    with torch.inference_mode():
        for layer in context.walk("prefill"):
            if layer.layer.state != "kv-only":
                continue
            # The K/V that are wanted are those of the layer as the plan left it, on the dense hidden states.
            (dense,) = [one for one in context.layers("decode") if one.block == layer.layer.block]
            wanted = context.module("decode", dense)
            gaps, sizes = 0.0, 0.0
            for tokens in layer.tokens():
                for name in names:
                    given = layer.module.get_submodule(norm)(tokens.before_ND)
                    target = wanted.get_submodule(name)(wanted.get_submodule(norm)(tokens.dense_before_ND))
                    gaps += float((layer.module.get_submodule(name)(given) - target).square().sum())
                    sizes += float(target.square().sum())
            found[layer.layer.block] = gaps / sizes
    return found


@pytest.mark.parametrize("family", SPLIT)
def test_blocks_behind_which_nothing_is_missing_keep_their_weights(family: str) -> None:
    # Block 3 is reached as the dense model reaches it; what stands between it and block 4 does nothing.
    model = tiny_model(family, silent={3})
    context = context_of(model, Plan(prefill=Removal([KvOnly(3), KvOnly(4)])))
    KvRefit().recover(context)
    assert {key.block for key in context.pair.modules} == {3, 4}
    for layer in context.layers("prefill")[3:5]:
        changed = dict(context.module("prefill", layer).named_parameters())
        for name, weight in model.blocks[layer.block].named_parameters():
            assert torch.allclose(changed[name], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", SPLIT)
def test_the_kv_of_a_tail_come_nearer_to_the_dense_ones(family: str) -> None:
    context = context_of(tiny_model(family), TAIL)
    before = off_dense(context)
    KvRefit().recover(context)
    after = off_dense(context)
    assert before[3] == pytest.approx(0, abs=1e-9)
    assert after[3] == pytest.approx(0, abs=1e-9)
    assert after[4] < 0.9 * before[4]
    assert after[5] < 0.9 * before[5]


NEIGHBOURS: Mapping[str, Plan] = {
    "merged": Plan(Removal([KvOnly(1), KvOnly(MERGE.blocks[0])]), Removal([MERGE])),
    "merged with the K/V of one": Plan(Removal([KvOnly(1), KvOnly(2)]), Removal([Merge(keep=2, drop=3, kv="frozen")])),
    "less heads in decode": Plan(Removal([KvOnly(1), KvOnly(2)]), Removal([Shrink(2, "attention", (1,))])),
    "less channels in decode": Plan(Removal([KvOnly(1), KvOnly(2)]), Removal([Shrink(2, "mlp", (0, 5))])),
    "behind blocks that are gone": Plan(Removal([Drop(1), KvOnly(2)]), Removal([Drop(1)])),
}


def narrows(plan: Plan) -> bool:
    return any(isinstance(element, Shrink) for element in plan.decode)


@pytest.mark.parametrize(
    ("family", "neighbour"),
    # Experts are not made narrower.
    [(family, name) for family in SPLIT for name, plan in NEIGHBOURS.items() if family not in EXPERTS or not narrows(plan)],
)
def test_the_kv_of_merged_and_shrunk_layers_are_fitted_to_what_those_layers_make(family: str, neighbour: str) -> None:
    model, plan = tiny_model(family), NEIGHBOURS[neighbour]
    context = context_of(model, plan, modules=replacements(model))
    before = off_dense(context)
    KvRefit().recover(context)
    assert off_dense(context)[2] < 0.95 * before[2]


@pytest.mark.parametrize("family", SPLIT)
def test_nothing_but_the_projections_of_kv_changes(family: str) -> None:
    model = tiny_model(family)
    context = context_of(model, TAIL)
    KvRefit().recover(context)
    k, v = model.layout.kv[1:3]
    assert not recovered_weights(TAIL, model, context.pair.modules, "decode")
    changed = recovered_weights(TAIL, model, context.pair.modules, "prefill")
    # The first of them was right already.
    assert {name for name in changed if not name.startswith("3.")} == {
        f"{block}.{part}.weight" for block in (4, 5) for part in (k, v)
    }


@pytest.mark.parametrize("plan", [Plan(), Plan(decode=Removal([Drop(2)])), Plan.unified(Removal([Drop(2)]))])
def test_it_leaves_a_prefill_that_runs_all_its_blocks_alone(plan: Plan) -> None:
    context = context_of(tiny_llama(), plan)
    KvRefit().recover(context)
    assert not context.pair.modules


@pytest.mark.parametrize("family", ["gpt-neox", "phi3"])
def test_a_family_that_computes_kv_together_with_q_is_refused_by_name(family: str) -> None:
    problems = KvRefit().problems(RecoveryFacts("the-model", family, tiny_model(family).layout))
    assert problems == [f"the-model ({family}): it computes K and V together with Q, so prefill cannot have them alone"]


@pytest.mark.parametrize("family", SPLIT)
def test_other_families_are_not_refused(family: str) -> None:
    assert KvRefit().problems(RecoveryFacts("the-model", family, tiny_model(family).layout)) == []


def test_too_few_tokens_with_hardly_any_ridge_are_refused_with_the_number_that_it_takes() -> None:
    context = recovery_context(tiny_llama(), TAIL, texts(1), check=texts(1, seed=1))
    with pytest.raises(PdtrimError, match=r"K/V of block 3: 10 tokens do not determine a map of 32 x 32 numbers.*128 tokens"):
        KvRefit(ridge=1e-30).recover(context)


def test_a_layer_that_was_fitted_before_is_fitted_from_what_it_has() -> None:
    context = context_of(tiny_llama(), TAIL)
    KvRefit().recover(context)
    once = dict(context.pair.modules)
    KvRefit().recover(context)
    assert once.keys() == context.pair.modules.keys() == {LayerOf(TAIL, "prefill", block) for block in (3, 4, 5)}


def test_what_is_wanted_is_of_the_plan_and_not_of_an_earlier_recovery() -> None:
    context = context_of(tiny_llama(), Plan(Removal([Drop(1), KvOnly(4), KvOnly(5)]), Removal([Drop(1)])))
    KvRefit().recover(context)
    once = off_dense(context)
    for _ in range(3):
        KvRefit().recover(context)
    # Each time the pull towards what was there before is a little less, and so is what is missing.
    assert all(gap < once[block] for block, gap in off_dense(context).items())
