"""What a recovery is given: a trial that is apart, and gradients to decode that are those of two phases."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch.nn.functional import kl_div

from pdtrim_core.api import Drop, KvOnly, Plan, Removal
from pdtrim_core.execution.stage_modules import as_stage
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.testing import tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import FAMILIES_AND_KV, MERGE, replacements
from tests.unit.recovery_pairs import DECODE_DROPS, recovery_context, some_texts

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import Item, RecoveryContext
    from pdtrim_core.plan.plan import FirstToken

EXPERTS = ("mixtral", "qwen3-moe")
PLANS = {
    "decode alone": DECODE_DROPS,
    "K/V only": Plan(Removal([KvOnly(4)]), Removal([Drop(1)])),
    "a merge": Plan(Removal(), Removal([MERGE])),
    "both": Plan(Removal([Drop(3)]), Removal([Drop(1), Drop(3)])),
}


def let_all_be_trained(trial: RecoveryContext, *, kv: bool) -> None:
    """Let the weights of decode want gradients: all of its layers, or all but those for K and V."""
    layout = trial.model.layout
    fixed = tuple(f"{part}." for part in (layout.kv[3:] if kv else layout.kv))
    for layer in trial.layers("decode"):
        named = dict(trial.module("decode", layer).named_parameters())
        free = [name for name in named if not name.startswith(fixed) and (layout.kv or name.startswith(layout.mlp))]
        trial.change("decode", layer, {name: named[name].detach().clone().requires_grad_() for name in free})


def gradients(trial: RecoveryContext) -> dict[str, Tensor]:
    """The gradients of decode's weights, which are then taken away."""
    found = {}
    for layer in trial.layers("decode"):
        for name, weight in trial.module("decode", layer).named_parameters():
            if weight.requires_grad:
                found[f"{layer.block}.{name}"] = torch.zeros_like(weight) if weight.grad is None else weight.grad
                weight.grad = None
    return found


def loss(dense_NV: Tensor, pair_NV: Tensor) -> Tensor:
    return kl_div(pair_NV.log_softmax(-1), dense_NV.log_softmax(-1), reduction="sum", log_target=True)


def of_one_pass(trial: RecoveryContext, texts: list[Item], *, recompute: bool = False) -> dict[str, Tensor]:
    for batch in trial.batches(texts):
        dense_NV, pair_NV = (torch.cat(list(trial.model.logits(states))) for states in (batch.dense(), batch.pair()))
        if recompute:
            pair_NV = torch.cat(list(trial.model.logits(batch.pair(recompute=True))))
        loss(dense_NV, pair_NV).backward()  # type: ignore[no-untyped-call]
    return gradients(trial)


def of_two_phases(trial: RecoveryContext, texts: list[Item], first_token: FirstToken) -> dict[str, Tensor]:
    """Prefill makes a cache; decode reads the continuation on it, with gradients."""
    model: Any = trial.model.model
    pair = TwoPhaseModel(trial.model, trial.plan, trial.pair.modules, first_token=first_token)
    for text in texts:
        prompt, continuation = text.prompt_of(0), text.choices[0]
        again = 1 if first_token == "decode" else 0
        with torch.no_grad():
            prefilled = pair._prefill(prompt[: len(prompt) - again])
            dense_NV = model(input_ids=torch.tensor([[*prompt, *continuation[:-1]]])).logits[0, len(prompt) - 1 :]
        read = [*prompt[len(prompt) - again :], *continuation[:-1]]
        with as_stage(trial.model, pair._decode_steps):
            pair_NV = model(
                input_ids=torch.tensor([read]), past_key_values=pair.hand_over(prefilled).cache, use_cache=True
            ).logits[0]
        if first_token == "prefill":
            pair_NV = torch.cat([prefilled.logits_V[None], pair_NV])
        loss(dense_NV, pair_NV).backward()  # type: ignore[no-untyped-call]
    return gradients(trial)


def farthest(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest difference of two gradients, as a share of the largest number in them."""
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    return max(float((found[name] - expected[name]).abs().max()) for name in found) / largest


@pytest.mark.numeric
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize(("family", "kv"), [(family, kv) for family, kv in FAMILIES_AND_KV if family != "phi3"])
def test_gradients_to_decode_are_those_of_two_phases(family: str, first_token: FirstToken, kv: bool) -> None:
    # In float64 only logits are rounded, to float32; experts have no product of that format.
    dtype = torch.float32 if family in EXPERTS else torch.float64
    model, texts = tiny_model(family, dtype=dtype), some_texts(3)
    worst = {}
    for name, plan in PLANS.items():
        trial = recovery_context(model, plan, modules=replacements(model), first_token=first_token)
        let_all_be_trained(trial, kv=kv)
        worst[name] = farthest(of_one_pass(trial, texts), of_two_phases(trial, texts, first_token))
    assert {name: gap for name, gap in worst.items() if gap > 1e-5} == {}


def test_gradients_with_recomputation_are_the_same() -> None:
    model = tiny_llama()
    trial, texts = recovery_context(model), some_texts(3)
    let_all_be_trained(trial, kv=True)
    assert farthest(of_one_pass(trial, texts, recompute=True), of_one_pass(trial, texts)) == pytest.approx(0, abs=1e-6)


def test_what_a_trial_changes_changes_nothing_elsewhere() -> None:
    context = recovery_context(tiny_llama())
    before, modules = context.divergence(), dict(context.pair.modules)
    trial = context.trial()
    layer = trial.layers("decode")[0]
    weight = trial.module("decode", layer).get_parameter("mlp.down_proj.weight")
    trial.change("decode", layer, {"mlp.down_proj.weight": torch.zeros_like(weight)})
    assert trial.divergence() != before
    assert context.divergence() == before
    assert dict(context.pair.modules) == modules


def test_a_trial_of_a_unified_pair_changes_both_stages() -> None:
    trial = recovery_context(tiny_llama(), Plan.unified(Removal([Drop(2)]))).trial()
    layer = trial.layers("decode")[0]
    trial.change("decode", layer, {})
    assert trial.module("prefill", trial.layers("prefill")[0]) is trial.module("decode", layer)
    assert trial.module("decode", layer) is not trial.model.blocks[0]


def test_gradients_go_through_weights_that_were_made_in_inference_mode() -> None:
    trial = recovery_context(tiny_llama())
    with torch.inference_mode():
        for layer in trial.layers("decode"):
            weight = trial.module("decode", layer).get_parameter("self_attn.k_proj.weight")
            trial.change("decode", layer, {"self_attn.k_proj.weight": 1.01 * weight})
    let_all_be_trained(trial, kv=False)
    assert all(float(gradient.abs().max()) > 0 for gradient in of_one_pass(trial, some_texts(3)).values())
