"""Plans that remove experts: what no router chooses changes nothing, and one pass, two phases and generation agree."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import pytest
import torch

from pdtrim_core.api import Drop, DropPart, Item, KvOnly, Merge, Plan, PlanError, Removal, Shrink
from pdtrim_core.execution.one_stage import stage_alone
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.testing import tiny_llama
from tests.unit.mixtures import BLOCKS, EXPERTS, GROUPED, SHAPES, experts_of, mixture, plant_unchosen, watched

pytestmark = pytest.mark.numeric

IDS = [5, 90, 17, 200, 33, 71, 8]
GONE = (1, 4, 6)
ONE, TWO = Shrink(1, "experts", GONE), Shrink(3, "experts", (0, 2, 3, 7))
PLANS = {
    "decode alone": Plan(decode=Removal([ONE, TWO])),
    "prefill alone": Plan(Removal([ONE])),
    "both stages": Plan.unified(Removal([ONE, TWO])),
    "fewer in decode": Plan(Removal([Shrink(1, "experts", (4,))]), Removal([ONE, TWO])),
    "others in prefill": Plan(Removal([Shrink(1, "experts", (0, 2)), TWO]), Removal([ONE])),
    "beside parts and blocks": Plan(Removal([Drop(2)]), Removal([DropPart(1, "attention"), ONE, Drop(2)])),
}


@cache
def model_of(family: str) -> BlockModel:
    return mixture(family)


def some_items() -> list[Item]:
    rng = random.Random(2)
    tokens = [tuple(rng.randrange(256) for _ in range(count)) for count in (9, 4, 14, 3, 2)]
    return [Item((tokens[0],), (tokens[1], tokens[3]), 0, (1, 1), "one"), Item((tokens[2],), (tokens[4],), 0, (1,), "two")]


def decode_logits(model: BlockModel, plan: Plan) -> torch.Tensor:
    with torch.inference_mode(), stage_alone(model, plan, "decode", {}):
        logits: torch.Tensor = model.model(input_ids=torch.tensor([IDS]), use_cache=False).logits[0]
    return logits


@pytest.mark.parametrize("family", SHAPES)
def test_the_experts_of_a_family_are_found(family: str) -> None:
    found = experts_of(model_of(family))
    dense = {"deepseek_v2": [0], "deepseek_v3": [0], "qwen3_moe": [2]}.get(family, [])
    assert sorted({*range(BLOCKS)} - found.keys()) == dense
    assert {(experts.count, experts.routing.top_k) for experts in found.values()} == {(EXPERTS, 2)}


def test_a_block_without_experts_has_none() -> None:
    assert experts_of(tiny_llama()) == {}


@pytest.mark.parametrize("family", SHAPES)
def test_experts_that_no_router_chooses_change_no_logit(family: str) -> None:
    model = mixture(family)
    plant_unchosen(model, GONE, IDS)
    with watched(model, "experts") as seen:
        before = decode_logits(model, Plan())
    assert not any(set(GONE) & set(calls[0][1].flatten().tolist()) for calls in seen.values())
    plan = Plan(decode=Removal(Shrink(block, "experts", GONE) for block in experts_of(model)))
    after = decode_logits(model, plan)
    assert float((after - before).abs().max()) < 1e-4
    # That is no matter of experts that do nothing.
    (others, *_) = ([e for e in range(EXPERTS) if e not in GONE],)
    chosen = Plan(decode=Removal(Shrink(block, "experts", tuple(others[:3])) for block in experts_of(model)))
    assert float((decode_logits(model, chosen) - before).abs().max()) > 0.1


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", SHAPES)
def test_one_pass_agrees_with_two_phases(family: str, first_token: Any) -> None:
    model, items = model_of(family), some_items()
    found = experts_of(model)
    plans = dict(PLANS)
    if first_token == "decode":
        plans["truncated"] = PLANS["decode alone"].truncated_prefill(BLOCKS)
        plans["K/V only"] = Plan(Removal([KvOnly(1)]), Removal([ONE]))
    assert {1, 3} <= found.keys()
    gaps: dict[str, float] = {}
    for name, plan in plans.items():
        staged = StagedModel(PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64)), plan)
        two_phase = TwoPhaseModel(model, plan, first_token=first_token)
        for item, sums in zip(items, staged.loglikelihoods(items), strict=True):
            for choice, total in zip(item.choices, sums, strict=True):
                logits = two_phase.continuation_logits(item.prompts[0], choice).double().log_softmax(-1)
                expected = sum(float(logits[at, token]) for at, token in enumerate(choice))
                gaps[name] = max(gaps.get(name, 0.0), abs(total - expected) / len(choice))
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}


@pytest.mark.parametrize("family", SHAPES)
def test_generation_follows_the_logits_of_decode(family: str) -> None:
    model, plan, prompt = model_of(family), PLANS["fewer in decode"], IDS
    two_phase = TwoPhaseModel(model, plan)
    made = two_phase.generate(prompt, 5)
    logits = two_phase.continuation_logits(prompt, made)
    assert made == logits.argmax(-1).tolist()
    assert made == two_phase.greedy_batch([prompt], 5)[0]


def test_a_router_must_keep_as_many_experts_as_a_token_goes_to() -> None:
    model = model_of("mixtral")
    with pytest.raises(PlanError) as caught:
        model.narrowed([Shrink(1, "experts", tuple(range(7)))], {})
    assert str(caught.value) == (
        "block 1 would keep 1 of its 8 experts, and its router sends each token to 2: 2 must stay at least"
    )
    with pytest.raises(PlanError) as caught:
        TwoPhaseModel(model, Plan(decode=Removal([Shrink(1, "experts", tuple(range(7)))]))).generate([1, 2], 2)
    assert str(caught.value).startswith("block 1 would keep 1 of its 8 experts")


@pytest.mark.parametrize(
    ("family", "shrink", "problem"),
    [
        ("mixtral", Shrink(1, "experts", (8,)), "block 1 has experts 0 to 7, and the plan removes 8"),
        (
            "mixtral",
            Shrink(1, "experts", tuple(range(8))),
            "block 1 would lose all of its 8 experts: drop the block, or keep one",
        ),
        (
            "deepseek_v3",
            Shrink(0, "experts", (1,)),
            "block 0 cannot lose experts: it has none among which a router chooses, or it is not certain which these are",
        ),
    ],
)
def test_what_a_block_has_not_cannot_go(family: str, shrink: Shrink, problem: str) -> None:
    with pytest.raises(PlanError) as caught:
        model_of(family).narrowed([shrink], {})
    assert str(caught.value) == problem


@pytest.mark.parametrize(("family", "method"), [("deepseek_v2", "group_limited_greedy"), ("deepseek_v3", "noaux_tc")])
def test_groups_of_experts_stay_alike(family: str, method: str) -> None:
    model = mixture(family, **GROUPED, topk_method=method)
    with pytest.raises(PlanError) as caught:
        model.narrowed([Shrink(1, "experts", (0, 1))], {})
    assert str(caught.value) == (
        "block 1 chooses among 4 groups of experts, which must stay alike: remove the same number from each"
    )
    plan = Plan(decode=Removal([Shrink(1, "experts", (1, 4, 11, 12))]))
    item = some_items()[0]
    two_phase = TwoPhaseModel(model, plan)
    for choice, total in zip(item.choices, StagedModel(PrefixCache(model), plan).loglikelihoods([item])[0], strict=True):
        logits = two_phase.continuation_logits(item.prompts[0], choice).double().log_softmax(-1)
        assert total == pytest.approx(sum(float(logits[at, token]) for at, token in enumerate(choice)), abs=1e-3)


@pytest.mark.parametrize("family", ["qwen2_moe", "deepseek_v3"])
def test_shared_experts_stay_whole(family: str) -> None:
    model = model_of(family)
    thin = model.narrowed([ONE], {})
    shared = {name: weight for name, weight in model.blocks[1].named_parameters() if "shared" in name}
    assert shared
    assert all(dict(thin.named_parameters())[name] is weight for name, weight in shared.items())


def test_all_that_stays_whole_is_shared_and_the_model_is_as_before() -> None:
    model = model_of("qwen3_moe")
    before = model.exact_fingerprint
    thin = model.narrowed([ONE], {})
    own = {name for name, weight in thin.named_parameters() if weight is not dict(model.blocks[1].named_parameters())[name]}
    assert own == {"mlp.experts.gate_up_proj", "mlp.experts.down_proj", "mlp.gate.weight"}
    TwoPhaseModel(model, PLANS["both stages"]).generate([1, 2, 3], 3)
    model.__dict__.pop("exact_fingerprint")
    assert model.exact_fingerprint == before
    assert model.blocks[1].get_submodule("mlp.experts").num_experts == EXPERTS


def test_a_prefill_with_fewer_experts_may_run_what_decode_merged() -> None:
    model = model_of("mixtral")
    merge = Merge(2, 3)
    plan = Plan(Removal([TWO]), Removal([merge]))
    modules = {merge: copy.deepcopy(model.blocks[3])}
    item = some_items()[0]
    two_phase = TwoPhaseModel(model, plan, modules)
    (sums,) = StagedModel(PrefixCache(model), plan, modules).loglikelihoods([item])
    for choice, total in zip(item.choices, sums, strict=True):
        logits = two_phase.continuation_logits(item.prompts[0], choice).double().log_softmax(-1)
        assert total == pytest.approx(sum(float(logits[at, token]) for at, token in enumerate(choice)), abs=1e-3)
