"""Plans that drop the attention or the MLP of a block: one pass, two phases and a model with those weights at zero agree."""

from __future__ import annotations

import copy
import random
from functools import cache
from typing import Any

import pytest
import torch

from pdtrim_core.api import Drop, DropPart, Item, KvOnly, Merge, Plan, Removal, Shrink
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.host.host import load_plugins
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.block_parts import NO_MODULE, NOT_ADDED, Zeros
from pdtrim_core.model.small_config import made_of
from pdtrim_core.plan.elements import PARTS, Part
from pdtrim_core.testing import ByteTokenizer, tiny_model

pytestmark = pytest.mark.numeric

BLOCKS = 4
COMMON = {"vocab_size": 260, "hidden_size": 32, "num_hidden_layers": BLOCKS, "num_attention_heads": 4}
GROUPED = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 48}
SHAPES: dict[str, dict[str, Any]] = {
    "bloom": {"vocab_size": 260, "hidden_size": 32, "n_layer": BLOCKS, "n_head": 4},
    "falcon": {**COMMON, "new_decoder_architecture": False, "parallel_attn": True},
    "gemma2": {**GROUPED, "head_dim": 8, "sliding_window": 8},
    "gpt2": {"vocab_size": 260, "n_embd": 32, "n_layer": BLOCKS, "n_head": 4, "n_positions": 128},
    "llama": GROUPED,
    "mixtral": {**GROUPED, "num_local_experts": 4, "num_experts_per_tok": 2},
    "mpt": {"vocab_size": 260, "d_model": 32, "n_layers": BLOCKS, "n_heads": 4},
    "opt": {**COMMON, "ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi": {**GROUPED, "num_key_value_heads": 4},
    "qwen2": GROUPED,
}
"""Families with and without norms behind their parts, with both parts side by side, with experts, and those that refuse."""
WHOLE = ("falcon", "gemma2", "gpt2", "llama", "mixtral", "phi", "qwen2")
REFUSED: dict[tuple[str, Part], str] = {
    ("bloom", "attention"): NOT_ADDED,
    ("bloom", "mlp"): NOT_ADDED,
    ("mpt", "mlp"): NOT_ADDED,
    ("opt", "mlp"): NO_MODULE,
}
PLANS = {
    "attention, in decode alone": Plan(decode=Removal([DropPart(1, "attention")])),
    "the first attention": Plan(decode=Removal([DropPart(0, "attention"), DropPart(2, "mlp")])),
    "the last attention": Plan(decode=Removal([DropPart(3, "attention")])),
    "both stages": Plan.unified(Removal([DropPart(0, "attention"), DropPart(1, "mlp"), DropPart(3, "attention")])),
    "MLP in prefill alone": Plan(prefill=Removal([DropPart(1, "mlp"), DropPart(2, "mlp")])),
    "less in prefill": Plan(Removal([DropPart(2, "mlp")]), Removal([DropPart(2, "mlp"), DropPart(2, "attention")])),
    "more in prefill": Plan(Removal([Drop(1), DropPart(2, "mlp")]), Removal([DropPart(1, "attention"), Drop(0)])),
    "K/V only": Plan(Removal([KvOnly(1)]), Removal([DropPart(1, "mlp"), DropPart(2, "attention")])),
}


@cache
def model_of(family: str) -> BlockModel:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(family, **SHAPES[family])
    model = made_of(lambda of: AutoModelForCausalLM.from_config(of, trust_remote_code=False), config)
    torch.manual_seed(1)
    for parameter in model.parameters():
        # Norms and biases that do something, so that a missing part shows where it should.
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return BlockModel(model, ByteTokenizer(), load_plugins().find_blocks(model, family), name=family)


def some_items() -> list[Item]:
    rng = random.Random(2)
    tokens = [tuple(rng.randrange(256) for _ in range(count)) for count in (9, 4, 14, 3, 2)]
    return [Item((tokens[0],), (tokens[1], tokens[3]), 0, (1, 1), "one"), Item((tokens[2],), (tokens[4],), 0, (1,), "two")]


def dense_without(model: BlockModel, removal: Removal, ids: torch.Tensor) -> torch.Tensor:
    """The logits of the whole model where the weights of the dropped parts are all zero."""
    parts = [model.blocks[part.block].get_submodule(model.parts.modules[part.part].name) for part in removal.dropped_parts]
    kept = [(parameter, parameter.data) for part in parts for parameter in part.parameters()]
    try:
        for parameter, data in kept:
            parameter.data = torch.zeros_like(data)
        with torch.inference_mode():
            logits: torch.Tensor = model.model(input_ids=ids, use_cache=False).logits[0].double()
        return logits
    finally:
        for parameter, data in kept:
            parameter.data = data


@pytest.mark.parametrize("family", WHOLE)
def test_every_part_can_be_dropped(family: str) -> None:
    found = model_of(family).parts
    assert found.refused == {}
    assert set(found.modules) == set(PARTS)


@pytest.mark.parametrize(("family", "part"), REFUSED, ids=str)
def test_a_part_that_zeros_do_not_leave_out_is_refused_by_name(family: str, part: Part) -> None:
    model, plan = model_of(family), Plan(decode=Removal([DropPart(1, part)]))
    told = f"{family}: its blocks cannot run without their {part}: {REFUSED[family, part]}"
    with pytest.raises(PdtrimError) as caught:
        StagedModel(PrefixCache(model), plan).loglikelihoods(some_items())
    assert str(caught.value) == told
    with pytest.raises(PdtrimError) as caught:
        TwoPhaseModel(model, plan).generate([1, 2, 3], 2)
    assert str(caught.value) == told


@pytest.mark.parametrize("family", WHOLE)
def test_a_part_is_gone_as_if_its_weights_were_zero(family: str) -> None:
    model, item = model_of(family), some_items()[0]
    plan = PLANS["both stages"]
    ids = torch.tensor([[*item.prompts[0], *item.choices[0]]])
    logits = dense_without(model, plan.decode, ids).log_softmax(-1)
    expected = sum(float(logits[len(item.prompts[0]) - 1 + at, token]) for at, token in enumerate(item.choices[0]))
    ((found, _),) = StagedModel(PrefixCache(model), plan).loglikelihoods([item])
    assert found == pytest.approx(expected, abs=1e-3)
    dense, _ = StagedModel(PrefixCache(model), Plan()).loglikelihoods([item])[0]
    assert abs(found - dense) > 0.02


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", WHOLE)
def test_one_pass_agrees_with_two_phases(family: str, first_token: Any) -> None:
    model, items = model_of(family), some_items()
    tails = (
        {f"{name}, truncated": plan.truncated_prefill(BLOCKS) for name, plan in PLANS.items()} if first_token == "decode" else {}
    )
    gaps: dict[str, float] = {}
    for name, plan in {**PLANS, **tails}.items():
        staged = StagedModel(PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64)), plan)
        two_phase = TwoPhaseModel(model, plan, first_token=first_token)
        for item, sums in zip(items, staged.loglikelihoods(items), strict=True):
            for choice, total in zip(item.choices, sums, strict=True):
                logits = two_phase.continuation_logits(item.prompts[0], choice).double().log_softmax(-1)
                expected = sum(float(logits[at, token]) for at, token in enumerate(choice))
                gaps[name] = max(gaps.get(name, 0.0), abs(total - expected) / len(choice))
    # Rounding of float32; a wrong K/V or mask gives tenths of a nat.
    assert {name: gap for name, gap in gaps.items() if gap > 1e-3} == {}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_texts_are_made_alike_one_by_one_and_together(family: str) -> None:
    model = model_of(family)
    for plan in PLANS.values():
        two_phase = TwoPhaseModel(model, plan)
        prompts = [[5, 6, 7, 8], [9, 10]]
        made = two_phase.greedy_batch(prompts, 4)
        assert made == [two_phase.generate(prompt, 4) for prompt in prompts]


@pytest.mark.parametrize("part", PARTS)
def test_a_part_goes_beside_units_and_merges(part: Part) -> None:
    """One block loses the other part's units, and another place merges: one pass and two phases still agree."""
    model = tiny_model("llama")
    other: Part = "mlp" if part == "attention" else "attention"
    merge = Merge(3, 4)
    decode = Removal([DropPart(1, part), Shrink(1, other, (0,)), merge])
    item, modules = some_items()[0], {merge: copy.deepcopy(model.blocks[4])}
    for plan in (Plan(decode=decode), Plan.unified(decode), Plan(Removal([DropPart(4, "mlp")]), decode)):
        staged = StagedModel(PrefixCache(model), plan, modules)
        two_phase = TwoPhaseModel(model, plan, modules)
        sums = staged.loglikelihoods([item])[0]
        for choice, total in zip(item.choices, sums, strict=True):
            logits = two_phase.continuation_logits(item.prompts[0], choice).double().log_softmax(-1)
            assert total == pytest.approx(sum(float(logits[at, token]) for at, token in enumerate(choice)), abs=1e-3)


def test_decode_hands_over_no_kv_where_it_has_no_attention() -> None:
    model = model_of("llama")
    two_phase = TwoPhaseModel(model, Plan(decode=Removal([DropPart(0, "attention"), DropPart(2, "mlp"), Drop(3)])))
    assert len(two_phase.hand_over(two_phase.prefill([1, 2, 3, 4])).cache.layers) == 2
    assert two_phase.decode_blocks == (1, 2)


def test_the_model_is_as_before() -> None:
    model = model_of("llama")
    before = model.exact_fingerprint
    plan = PLANS["both stages"]
    StagedModel(PrefixCache(model), plan).loglikelihoods(some_items())
    TwoPhaseModel(model, plan).generate([1, 2, 3], 3)
    model.__dict__.pop("exact_fingerprint")
    assert model.exact_fingerprint == before
    assert [block.get_submodule("self_attn").layer_idx for block in model.blocks] == list(range(BLOCKS))
    assert not any(isinstance(module, Zeros) for module in model.model.modules())


def test_a_block_without_a_part_is_one_module_for_both_stages() -> None:
    model = model_of("llama")
    path = StagedModel(PrefixCache(model), PLANS["both stages"]).path
    assert path[1].prefill == path[1].decode
    ((_, left),) = path[1].decode
    assert left is not None
    assert {id(parameter) for parameter in left.parameters()} < {id(parameter) for parameter in model.blocks[1].parameters()}
