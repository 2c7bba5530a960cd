"""Blocks that are gone, folded into the projection in front of them: exact where that can be, refused by name where it cannot."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, Any, Literal, cast

import pytest
import torch
from torch import nn

from pdtrim_core.api import Drop, KvOnly, LayerOf, Merge, PdtrimError, Plan, RecoveryFacts, Removal, Shrink
from pdtrim_core.execution.recovered_weights import recovered_weights
from pdtrim_core.testing import FAMILIES, recovery_context, tiny_llama, tiny_model
from pdtrim_plugins.recoveries import Fold
from tests.unit.execution.test_staged_model import MERGE, replacements

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pdtrim_core.api import BlockModel, RecoveryContext

pytestmark = pytest.mark.numeric

EXACT = 1e-4
"""Of a logit or of nats: what float32 loses on the way."""
STRAIGHT = [family for family in FAMILIES if family not in ("gemma3", "mixtral", "phi3", "qwen3-moe")]
PARTS = {"opt": ("final_layer_norm", "", "activation_fn"), "gpt-neox": ("post_attention_layernorm", "mlp", "act")}
"""Where a family has the norm in front of its MLP, and which part of it has the activation."""


class Ones(nn.Module):
    """A gate that is always open."""

    def forward(self, given: Tensor) -> Tensor:
        return torch.ones_like(given)


def texts(count: int, seed: int = 0) -> list[list[int]]:
    rng = Random(seed)
    return [rng.choices(range(256), k=24) for _ in range(count)]


def context_of(model: BlockModel, plan: Plan, **options: Any) -> RecoveryContext:
    return recovery_context(model, plan, texts(24), check=texts(4, seed=1), **options)


def with_a_linear_run(family: str, last: int = 1) -> BlockModel:
    """A model in which block 0 adds a linear map of the token's embedding, and blocks 1 to `last` one of its hidden state.

    The hidden states between and behind them are linear in what the MLP of block 0 gives, so that a map of it can stand for them.
    """
    model = tiny_model(family)
    norm, part, activation = PARTS.get(family, ("post_attention_layernorm", "mlp", "act_fn"))
    gated = len(model.layout.mlp) == 3
    with torch.no_grad():
        for block in model.blocks[: last + 1]:
            outputs = [name for name in ("self_attn.o_proj", "self_attn.out_proj", "attention.dense") if _has(block, name)]
            block.get_submodule(outputs[0]).get_parameter("weight").zero_()
            setattr(block.get_submodule(part), activation, Ones() if gated else nn.Identity())
        for block in model.blocks[1 : last + 1]:
            setattr(block, norm, nn.Identity())
        embedding = model.model.get_input_embeddings().weight
        if not gated:
            embedding -= embedding.mean(dim=1, keepdim=True)
        embedding /= embedding.square().mean(dim=1, keepdim=True).sqrt()
        if family == "opt":
            model.model.model.decoder.embed_positions.weight.zero_()
    return model


def _has(block: nn.Module, name: str) -> bool:
    return name in dict(block.named_modules())


def logits_of(context: RecoveryContext, which: str) -> Tensor:
    with torch.inference_mode():
        batches = context.batches(context.check)
        hidden = torch.cat([batch.dense() if which == "dense" else batch.pair() for batch in batches])
        return torch.cat(list(context.model.logits(hidden)))


@pytest.mark.parametrize("fit", ["map", "projection"])
@pytest.mark.parametrize("family", STRAIGHT)
@pytest.mark.parametrize("plan", [Plan(decode=Removal([Drop(1)])), Plan.unified(Removal([Drop(1)]))], ids=["decode", "both"])
def test_a_linear_run_is_made_up_for_exactly(family: str, plan: Plan, fit: Literal["map", "projection"]) -> None:
    context = context_of(with_a_linear_run(family), plan)
    dense = logits_of(context, "dense")
    before = (logits_of(context, "pair") - dense).abs().max()
    Fold(ridge=1e-12, fit=fit).recover(context)
    after = (logits_of(context, "pair") - dense).abs().max()
    assert before > 1
    assert after < EXACT


def test_a_linear_run_of_several_blocks_is_made_up_for_in_prefill_as_well() -> None:
    gone = Removal([Drop(1), Drop(2)])
    context = context_of(with_a_linear_run("llama", last=2), Plan(gone, gone.with_(Drop(5))))
    dense = hidden_of_prompts(context, dense=True)
    assert (hidden_of_prompts(context, dense=False) - dense).norm() > 0.1 * dense.norm()
    Fold(stage="prefill", ridge=1e-12).recover(context)
    assert (hidden_of_prompts(context, dense=False) - dense).norm() < EXACT * dense.norm()


def hidden_of_prompts(context: RecoveryContext, *, dense: bool) -> Tensor:
    """The hidden states that prefill, or the dense model, has in front of block 3, at the prompts' tokens but the first."""
    layer = next(one for one in context.walk("prefill") if one.layer.block == 3)
    return torch.cat([tokens.dense_before_ND if dense else tokens.before_ND for tokens in layer.tokens()])


@pytest.mark.parametrize("family", STRAIGHT)
def test_a_run_of_blocks_that_did_nothing_is_folded_into_nothing(family: str) -> None:
    model = tiny_model(family, silent={2})
    context = context_of(model, Plan(decode=Removal([Drop(2)])))
    Fold().recover(context)
    name = f"{model.layout.mlp[-1]}.weight"
    (layer,) = [one for one in context.layers("decode") if one.block == 1]
    changed = context.module("decode", layer).get_parameter(name)
    assert changed is not model.blocks[1].get_parameter(name)
    assert torch.allclose(changed, model.blocks[1].get_parameter(name), rtol=EXACT, atol=EXACT)


NEIGHBOURS: Mapping[str, Plan] = {
    "shrunk channels": Plan(decode=Removal([Shrink(1, "mlp", (0, 5, 7)), Drop(2)])),
    "shrunk heads": Plan(decode=Removal([Shrink(1, "attention", (1,)), Drop(2)])),
    "shrunk more than prefill": Plan(
        Removal([Shrink(1, "mlp", (0,)), Drop(2)]), Removal([Shrink(1, "attention", (1,)), Drop(2)])
    ),
    "shrunk in both stages": Plan.unified(Removal([Shrink(1, "attention", (1,)), Shrink(1, "mlp", (0, 5)), Drop(2)])),
    "merged": Plan(decode=Removal([MERGE, Drop(MERGE.blocks[-1] + 1)])),
    "merged with the K/V of one": Plan(decode=Removal([Merge(keep=2, drop=3, kv="frozen"), Drop(4)])),
}


def heads_go(plan: Plan) -> bool:
    return any(isinstance(element, Shrink) and element.part == "attention" for element in plan.decode)


@pytest.mark.parametrize(
    ("family", "neighbour"),
    # The heads of gpt-neox are in one projection, and cannot go.
    [(family, name) for family in STRAIGHT for name, plan in NEIGHBOURS.items() if family != "gpt-neox" or not heads_go(plan)],
)
def test_a_shrunk_or_merged_block_in_front_is_folded_into_as_well(family: str, neighbour: str) -> None:
    model, plan = tiny_model(family), NEIGHBOURS[neighbour]
    notes: list[str] = []
    context = context_of(model, plan, modules=replacements(model), note=notes.append)
    Fold(ridge=1.0).recover(context)
    gone = next(element for element in plan.decode if isinstance(element, Drop)).block
    (layer,) = [one for one in context.layers("decode") if one.blocks[-1] == gone - 1]
    assert LayerOf.at(plan, "decode", layer) in context.pair.modules
    assert not notes
    # Some biases are 0, and so is what a map makes of them.
    weights = recovered_weights(plan, model, context.pair.modules, "decode")
    out = f"{layer.block}.{model.layout.mlp[-1]}"
    assert {f"{out}.weight"} <= weights.keys() <= {f"{out}.weight", f"{out}.bias"}


def test_a_factor_behind_the_projection_is_found_by_what_it_does() -> None:
    # Some families multiply what the MLP gives by a factor; no list of families is asked.
    model = tiny_llama()

    def forward(mlp: Any, given: Tensor) -> Tensor:
        made: Tensor = mlp.down_proj(mlp.act_fn(mlp.gate_proj(given)) * mlp.up_proj(given))
        return 0.5 * made

    for block in model.blocks:
        mlp = cast("Any", block).mlp
        mlp.forward = forward.__get__(mlp)
    notes: list[str] = []
    context = context_of(model, Plan(decode=Removal([Drop(2)])), note=notes.append)
    Fold().recover(context)
    assert len(notes) == 1
    assert not context.pair.modules


def test_runs_behind_a_post_norm_are_left_out_by_block_and_reason() -> None:
    model, notes = tiny_model("gemma3"), list[str]()
    context = context_of(model, Plan(Removal([Drop(4)]), Removal([Drop(2), Drop(4)])), note=notes.append)
    Fold().recover(context)
    assert notes == [
        f"fold of {stage}'s block {gone}: in block {front} in front of them, what mlp.down_proj gives is not added to the hidden "
        "states as it is (a norm or a factor stands between), so they are not folded"
        for stage, gone, front in (("prefill", 4, 3), ("decode", 2, 1), ("decode", 4, 3))
    ]
    assert not context.pair.modules


def test_a_run_that_begins_at_block_0_is_left_out_and_others_are_folded() -> None:
    plan, notes = Plan(decode=Removal([Drop(0), Drop(1), Drop(4)])), list[str]()
    context = context_of(tiny_llama(), plan, note=notes.append)
    Fold().recover(context)
    assert notes == ["fold of decode's blocks 0, 1: no block is left in front of them, so they are not folded"]
    assert [key.block for key in context.pair.modules] == [3]


@pytest.mark.parametrize("family", ["mixtral", "phi3", "qwen3-moe"])
def test_a_family_whose_mlp_has_no_projection_of_its_own_is_refused_by_name(family: str) -> None:
    what = "the projections of its MLP are fused or belong to experts, so there is none into which a map could be folded"
    assert Fold().problems(RecoveryFacts("the-model", family, tiny_model(family).layout)) == [f"the-model ({family}): {what}"]


@pytest.mark.parametrize("family", [*STRAIGHT, "gemma3"])
def test_other_families_are_not_refused(family: str) -> None:
    assert Fold().problems(RecoveryFacts("the-model", family, tiny_model(family).layout)) == []


@pytest.mark.parametrize("plan", [Plan(decode=Removal([Drop(2)])), Plan(Removal([Drop(4)]), Removal([Drop(2), Drop(4)]))])
def test_prefill_ships_the_same_bits_where_decode_alone_is_folded(plan: Plan) -> None:
    context = context_of(tiny_llama(), plan)
    before = shipped(context)
    Fold(stage="decode").recover(context)
    assert context.pair.modules
    assert all(torch.equal(now, then) for now, then in zip(shipped(context), before, strict=True))


def shipped(context: RecoveryContext) -> list[Tensor]:
    """K and V in front of the rotary embedding that prefill makes of the prompts, layer by layer, at all tokens but the first."""
    norm, k, v = context.model.layout.kv[:3]
    found = []
    with torch.inference_mode():
        for layer in context.walk("prefill"):
            for tokens in layer.tokens():
                normed = layer.module.get_submodule(norm)(tokens.before_ND)
                found += [layer.module.get_submodule(name)(normed) for name in (k, v)]
    return found


@pytest.mark.parametrize(("stage", "changed"), [("decode", {1}), ("prefill", {3}), ("both", {1, 3})])
def test_only_the_stage_that_is_asked_for_gets_other_weights(stage: str, changed: set[int]) -> None:
    context = context_of(tiny_llama(), Plan(Removal([KvOnly(4)]), Removal([Drop(2)])))
    Fold.model_validate({"stage": stage}).recover(context)
    assert {key.block for key in context.pair.modules} == changed


def test_too_few_tokens_with_hardly_any_ridge_are_refused_with_the_number_that_it_takes() -> None:
    context = recovery_context(tiny_llama(), Plan(decode=Removal([Drop(2)])), texts(1), check=texts(1, seed=1))
    with pytest.raises(
        PdtrimError, match=r"fold of decode's block 2: 12 tokens do not determine a map of 32 x 32 numbers.*128 tok"
    ):
        Fold(fit="map", ridge=1e-30).recover(context)


def test_the_bias_of_the_projection_goes_through_the_map_as_well() -> None:
    model = with_a_linear_run("gpt-neox")
    context = context_of(model, Plan(decode=Removal([Drop(1)])))
    with torch.no_grad():
        model.blocks[0].get_parameter("mlp.dense_4h_to_h.bias").copy_(torch.linspace(-0.5, 0.5, 32))
    Fold(fit="map", ridge=1e-12).recover(context)
    module = context.module("decode", context.layers("decode")[0])
    own = model.blocks[0].get_submodule("mlp.dense_4h_to_h")
    found = module.get_submodule("mlp.dense_4h_to_h")
    weight, bias = (own.get_parameter(name).double() for name in ("weight", "bias"))
    map_DD = torch.linalg.lstsq(weight.T, found.get_parameter("weight").double().T).solution
    assert torch.allclose(found.get_parameter("bias").double(), bias @ map_DD, atol=1e-3)
