from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.first_tokens import depths_of, first_tokens_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.prompt_kv import with_heads
from pdtrim_core.execution.quantized_weights import (
    NumberFormat,
    linears_of,
    load_quantized,
    quantized_layers,
    quantized_weights,
    save_quantized,
)
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.quantized_linear import QuantizedLinear
from pdtrim_core.plan.elements import Drop, KvOnly, Merge, Removal, Shrink, Stage
from pdtrim_core.plan.formats import Formats
from pdtrim_core.plan.plan import FirstToken, FirstTokensOf, LayerOf, Plan
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import grown

CLOSE = 1e-4
PLANS = {
    "nothing": Plan(),
    "decode": Plan(decode=Removal([Drop(2)])),
    "both": Plan(Removal([Drop(2), KvOnly(4), KvOnly(5)]), Removal([Drop(2)])),
    "unified": Plan.unified(Removal([Drop(2)])),
    "merged": Plan(Removal([KvOnly(5)]), Removal([Merge(1, 2)])),
    "heads": Plan(decode=Removal([Shrink(1, "attention", (0,)), Shrink(3, "mlp", (5, 7))])),
}


class Coarse:
    """Rounds weights to a sixteenth, and with the format `both` what layers are given to a quarter."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        return {"weight": (16 * weight).round().to(torch.int8), "weight_scale": weight.new_full((1,), 1 / 16)}

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        return stored["weight"] * stored["weight_scale"]

    def rounds_inputs(self, scheme: str) -> bool:
        return scheme == "both"

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        return (4 * inputs).round() / 4


def modules_of(model: BlockModel, plan: Plan) -> dict[Any, nn.Module]:
    return {e: grown(model, e) for e in dict.fromkeys((*plan.prefill, *plan.decode)) if isinstance(e, Merge)}


def quantised(model: BlockModel, plan: Plan, schemes: Mapping[Stage, str]) -> dict[Any, nn.Module]:
    modules = modules_of(model, plan)
    found = dict(modules)
    for stage, scheme in schemes.items():
        one = NumberFormat(Coarse(), scheme)
        tensors = quantized_weights(model, plan, stage, modules, one)
        found |= quantized_layers(model, plan, stage, modules, one, tensors=tensors)
    return found


def items(seed: int = 0) -> list[Item]:
    generator = torch.Generator().manual_seed(seed)
    drawn = [torch.randint(0, 255, (size,), generator=generator).tolist() for size in (9, 14, 17)]
    return [Item((tuple(ids[:-5]),), (tuple(ids[-5:]),), 0, (1,), f"item {number}") for number, ids in enumerate(drawn)]


SCHEMES: list[dict[Stage, str]] = [
    {"decode": "weights"},
    {"prefill": "both"},
    {"decode": "both", "prefill": "weights"},
    {"decode": "both", "prefill": "both"},
]


@pytest.mark.numeric
@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("schemes", SCHEMES, ids=str)
@pytest.mark.parametrize("plan", PLANS)
def test_one_pass_scores_as_two_phases_do(plan: str, schemes: dict[Stage, str], first_token: FirstToken) -> None:
    model = tiny_llama()
    modules = quantised(model, PLANS[plan], schemes)
    cache = PrefixCache(model, ExecutionOptions(first_token=first_token))
    scored = StagedModel(cache, PLANS[plan], modules).loglikelihoods(items())
    pair = TwoPhaseModel(model, PLANS[plan], modules, first_token=first_token)
    for item, (found,) in zip(items(), scored, strict=True):
        logits = pair.continuation_logits(item.prompts[0], item.choices[0]).log_softmax(dim=-1)
        wanted = sum(float(row[token]) for row, token in zip(logits, item.choices[0], strict=True))
        assert found == pytest.approx(wanted, abs=CLOSE)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "gemma3", "opt", "phi3", "gpt-neox"])
def test_other_families_agree_too(family: str) -> None:
    model, plan = tiny_model(family), PLANS["decode"]
    # Where K, V and Q are one projection, the stages have one format.
    schemes: dict[Stage, str] = {"decode": "both" if not model.layout.kv else "weights", "prefill": "both"}
    modules = quantised(model, plan, schemes)
    for item, (found,) in zip(items(), StagedModel(PrefixCache(model), plan, modules).loglikelihoods(items()), strict=True):
        logits = TwoPhaseModel(model, plan, modules).continuation_logits(item.prompts[0], item.choices[0]).log_softmax(dim=-1)
        assert found == pytest.approx(
            sum(float(row[token]) for row, token in zip(logits, item.choices[0], strict=True)), abs=CLOSE
        )


@pytest.mark.parametrize("others", [True, False])
def test_a_table_of_first_tokens_goes_with_formats(others: bool) -> None:
    model, plan = tiny_llama(), PLANS["both"]
    modules = quantised(model, plan, {"prefill": "both", "decode": "weights"})
    tokens = [item.prompts[0][0] for item in items()[:2]]
    modules[FirstTokensOf(plan)] = first_tokens_of(model, tokens, depths_of(plan, model.block_count), others=others)
    for item, (found,) in zip(items(), StagedModel(PrefixCache(model), plan, modules).loglikelihoods(items()), strict=True):
        logits = TwoPhaseModel(model, plan, modules).continuation_logits(item.prompts[0], item.choices[0]).log_softmax(dim=-1)
        assert found == pytest.approx(
            sum(float(row[token]) for row, token in zip(logits, item.choices[0], strict=True)), abs=CLOSE
        )


OF_PREFILL: tuple[dict[Stage, str], ...] = ({}, {"prefill": "weights"})


def test_decode_reads_the_kv_that_prefills_weights_make() -> None:
    model = tiny_llama()
    dense, of_prefill = (
        StagedModel(PrefixCache(model), Plan(), quantised(model, Plan(), schemes)).loglikelihoods(items())
        for schemes in OF_PREFILL
    )
    assert all(abs(one - other) > CLOSE for (one,), (other,) in zip(dense, of_prefill, strict=True))


@pytest.mark.parametrize("scheme", ["weights", "both"])
def test_stages_with_the_same_weights_that_round_inputs_unlike_are_told_apart(scheme: str) -> None:
    model = tiny_llama()
    schemes: dict[Stage, str] = {"decode": "weights", "prefill": scheme}
    modules = quantised(model, Plan(), schemes)
    (place, *_) = StagedModel(PrefixCache(model), Plan(), modules).path
    assert (place.kv is not None) == (scheme == "both")


def test_norms_biases_and_the_model_itself_stay_as_they_are() -> None:
    model, plan = tiny_model("qwen2"), PLANS["decode"]
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    modules = quantised(model, plan, {"decode": "weights"})
    block = modules[LayerOf(plan, "decode", 0)]
    own = dict(model.blocks[0].named_parameters())
    for name, weight in block.named_parameters():
        assert (weight is own[name]) == (not name.endswith("proj.weight"))
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.named_parameters())


def test_a_layer_that_only_makes_kv_has_only_what_makes_them() -> None:
    model, plan = tiny_llama(), PLANS["both"]
    of_layers = {found.layer.block: set(found.linears) for found in linears_of(model, plan, "prefill", {})}
    assert of_layers[5] == {"self_attn.k_proj", "self_attn.v_proj"}
    assert len(of_layers[0]) == 7


def test_a_layer_without_some_heads_still_rounds_what_it_is_given() -> None:
    model = tiny_llama()
    modules = quantised(model, PLANS["heads"], {"prefill": "both"})
    block = modules[LayerOf(PLANS["heads"], "prefill", 1)]
    whole = block.get_submodule("self_attn.k_proj")
    assert isinstance(whole, QuantizedLinear)
    given = torch.randn(2, 32, generator=torch.Generator().manual_seed(1))
    heads = whole(given).shape[1] // 8
    thin = with_heads(block, ["self_attn.k_proj"], range(1, heads), heads).get_submodule("self_attn.k_proj")
    assert torch.equal(thin(given), whole(given)[:, 8:])


def saved_in(folder: Path, model: BlockModel, plan: Plan) -> SavedPlan:
    tensors = {"decode": quantized_weights(model, plan, "decode", {}, NumberFormat(Coarse(), "weights"))}
    digest = save_quantized(folder, {"stages": {"decode": {"config": {}}}}, tensors)  # type: ignore[arg-type]
    return SavedPlan(plan, "tiny", "f", 6, formats=Formats("coarse", None, "weights", digest))


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["decode"]
    saved = saved_in(tmp_path, model, plan)
    found, made = load_quantized(saved, model, {}, tmp_path, Coarse()), quantised(model, plan, {"decode": "weights"})
    assert found.keys() == made.keys()
    for key, module in made.items():
        again = dict(found[key].named_parameters())
        assert all(torch.equal(weight, again[name]) for name, weight in module.named_parameters())


def test_weights_that_are_not_there_or_are_others_are_refused(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["decode"]
    saved = saved_in(tmp_path, model, plan)
    with pytest.raises(PdtrimError, match="the plan has quantised weights, and they are not in"):
        load_quantized(saved, model, {}, tmp_path / "elsewhere", Coarse())
    (tmp_path / "formats.json").write_text("{}")
    with pytest.raises(PdtrimError, match="has not the quantised weights of the plan: run the recipe again"):
        load_quantized(saved, model, {}, tmp_path, Coarse())


def test_weights_of_another_plan_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    saved = saved_in(tmp_path, model, PLANS["decode"])
    other = SavedPlan(Plan(decode=Removal([Drop(1), Drop(2)])), "tiny", "f", 6, formats=saved.formats)
    with pytest.raises(PdtrimError, match=r"decode\.safetensors are damaged or of another plan \(no layer of the plan has 1\."):
        load_quantized(other, model, {}, tmp_path, Coarse())
