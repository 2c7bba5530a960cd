"""Generating in two phases: one prompt or many, token by token, with K/V that prefill hands to decode."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import Drop, Edges, FirstOnly, KvOnly, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.stage_modules import with_weights
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken, LayerOf
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model

pytestmark = pytest.mark.numeric

PROMPTS = ([5, 6, 7, 8, 9, 30, 31, 32, 33, 34, 35], [11, 12, 13], [99])
PAD, WIDTH, NEW = 258, 11, 10
STAGED = Plan(prefill=Removal([Drop(0), Drop(1)]), decode=Removal([Drop(0), Drop(1), Drop(3)]))


FIRST_TOKENS: tuple[FirstToken, ...] = ("decode", "prefill")


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    gaps = [WIDTH - len(prompt) for prompt in PROMPTS]
    ids_BT = torch.tensor([[PAD] * gap + prompt for gap, prompt in zip(gaps, PROMPTS, strict=True)])
    mask_BT = torch.tensor([[0] * gap + [1] * (WIDTH - gap) for gap in gaps])
    return ids_BT, mask_BT


# One prompt


def test_generating_with_the_dense_plan_is_what_transformers_generates() -> None:
    model = tiny_llama()
    prompt = [5, 6, 7, 8]
    expected = model.model.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, pad_token_id=258)[0, 4:]
    assert TwoPhaseModel(model, Plan()).generate(prompt, 8) == expected.tolist()
    assert TwoPhaseModel(model, Plan(), first_token="prefill").generate(prompt, 8) == expected.tolist()


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_generated_is_the_likeliest_token_behind_each_before_it(family: str, first_token: FirstToken) -> None:
    two_phase = TwoPhaseModel(tiny_model(family), STAGED, first_token=first_token)
    for prompt in PROMPTS:
        made = two_phase.generate(prompt, NEW)
        logits_TV = two_phase.continuation_logits(prompt, made)
        assert logits_TV.argmax(-1).tolist() == made


def test_a_text_ends_at_the_end_of_sequence_token_and_has_it() -> None:
    model = tiny_llama()
    two_phase = TwoPhaseModel(model, STAGED)
    whole = two_phase.generate(PROMPTS[0], NEW)
    model.model.generation_config.eos_token_id = [300, whole[3]]
    assert two_phase.generate(PROMPTS[0], NEW) == whole[: whole.index(whole[3]) + 1]


@pytest.mark.parametrize("recompute", range(2, 12))
def test_where_both_stages_are_alike_it_does_not_matter_which_of_them_reads_the_prompt(recompute: int) -> None:
    two_phase = TwoPhaseModel(tiny_llama(), Plan.unified(STAGED.decode))
    assert two_phase.generate(PROMPTS[0], NEW, recompute=recompute) == two_phase.generate(PROMPTS[0], NEW)


def test_running_more_of_the_prompt_in_decode_is_another_model() -> None:
    model = TwoPhaseModel(tiny_llama(), Plan(decode=Removal([Drop(1), Drop(2), Drop(3)])))
    prompt = list(range(40, 72))
    one, all_but_one = model.generate(prompt, 12), model.generate(prompt, 12, recompute=31)
    assert len(one) == 12
    assert one != all_but_one


@pytest.mark.parametrize(("first_token", "recompute"), [("decode", 0), ("decode", -1), ("prefill", 1), ("prefill", -1)])
def test_a_recompute_that_does_not_go_with_the_first_token_is_refused(first_token: FirstToken, recompute: int) -> None:
    two_phase = TwoPhaseModel(tiny_llama(), STAGED, first_token=first_token)
    with pytest.raises(PdtrimError) as caught:
        two_phase.generate([1, 2, 3], 1, recompute=recompute)
    assert str(caught.value) == f"recompute = {recompute} does not go with first_token = '{first_token}'"


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_the_least_recompute_is_the_usual_one(first_token: FirstToken) -> None:
    two_phase = TwoPhaseModel(tiny_llama(), STAGED, first_token=first_token)
    least = FIRST_TOKENS[::-1].index(first_token)
    assert two_phase.generate(PROMPTS[0], NEW, recompute=least) == two_phase.generate(PROMPTS[0], NEW)


def test_with_the_first_token_by_prefill_decode_does_not_change_it() -> None:
    model, plan = tiny_llama(), Plan(decode=STAGED.decode)
    dense, by_prefill, by_decode = (
        TwoPhaseModel(model, of, first_token=stage).continuation_logits(PROMPTS[0], [1, 2])
        for of, stage in ((Plan(), FIRST_TOKENS[1]), (plan, FIRST_TOKENS[1]), (plan, FIRST_TOKENS[0]))
    )
    assert torch.equal(by_prefill[0], dense[0])
    assert not torch.allclose(by_prefill[1], dense[1], atol=0.1)
    assert not torch.allclose(by_decode[0], dense[0], atol=0.1)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_pairs_with_one_prefill_decode_from_one_reading_of_a_prompt(first_token: FirstToken) -> None:
    model, prompt, answer = tiny_llama(), [5, 9, 60, 3, 7] * 8, [11, 4, 30]
    prefill = Removal([KvOnly(0)])
    selecting = Plan(prefill).selecting([Edges(2, 0.1, 0.1)])
    plans = [Plan(prefill), Plan(prefill, Removal([Drop(1)])), selecting]
    pairs = [TwoPhaseModel(model, plan, first_token=first_token) for plan in plans]
    prefilled = pairs[0].prefill(prompt)
    assert not torch.equal(pairs[0].continuation_logits(prompt, answer), pairs[2].continuation_logits(prompt, answer))
    for _ in range(2):  # decoding leaves it as it was
        for pair in pairs:
            alone = pair.continuation_logits(prompt, answer)
            assert torch.equal(pair.continuation_logits(prompt, answer, prefilled=prefilled), alone)
            assert pair.generate(prompt, 6, prefilled=prefilled) == pair.generate(prompt, 6)


def test_a_merge_without_its_module_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        TwoPhaseModel(tiny_llama(), Plan.unified(Removal([Merge(keep=3, drop=2)])))
    assert str(caught.value) == "the plan has 2+3, but no merged block was given for it"


# Many prompts


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_generate_together_what_they_generate_alone(family: str, first_token: FirstToken) -> None:
    model = tiny_model(family)
    plan = STAGED.truncated_prefill(model.block_count) if first_token == "decode" else STAGED
    two_phase = TwoPhaseModel(model, plan, first_token=first_token)
    before = model.model.config.to_dict()
    made_BT = two_phase.generate_batch(*batch(), max_length=WIDTH + NEW, do_sample=False, pad_token_id=PAD)
    for made, prompt in zip(made_BT[:, WIDTH:].tolist(), PROMPTS, strict=True):
        alone = two_phase.generate(prompt, NEW)
        assert made[: len(alone)] == alone
        assert set(made[len(alone) :]) <= {PAD}
    assert model.model.config.to_dict() == before


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_a_text_that_ends_at_once_is_followed_by_padding(first_token: FirstToken) -> None:
    model = tiny_llama()
    two_phase = TwoPhaseModel(model, STAGED, first_token=first_token)
    first = two_phase.generate(PROMPTS[1], 1)[0]
    model.model.generation_config.eos_token_id = first
    made_BT = two_phase.generate_batch(*batch(), max_length=WIDTH + 4, do_sample=False, pad_token_id=PAD)
    assert made_BT[1, WIDTH:].tolist() == [first, PAD, PAD, PAD][: made_BT.shape[1] - WIDTH]


def test_only_one_token_is_prefill_s_alone() -> None:
    two_phase = TwoPhaseModel(tiny_llama(), STAGED, first_token="prefill")
    made_BT = two_phase.generate_batch(*batch(), max_length=WIDTH + 1, do_sample=False, pad_token_id=PAD)
    assert made_BT[:, WIDTH:].tolist() == [two_phase.generate(prompt, 1) for prompt in PROMPTS]


# Many prompts, greedily


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_generate_together_have_the_texts_of_prompts_alone(family: str, first_token: FirstToken) -> None:
    two_phase = TwoPhaseModel(tiny_model(family), STAGED, first_token=first_token)
    assert two_phase.greedy_batch(PROMPTS, NEW) == [two_phase.generate(prompt, NEW) for prompt in PROMPTS]


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_a_text_that_has_ended_is_run_no_further_and_the_others_are(first_token: FirstToken) -> None:
    model = tiny_llama()
    two_phase = TwoPhaseModel(model, STAGED, first_token=first_token)
    whole = two_phase.greedy_batch(PROMPTS, NEW)
    for last in (whole[0][0], whole[1][3]):
        model.model.generation_config.eos_token_id = last
        ended = two_phase.greedy_batch(PROMPTS, NEW)
        assert ended == [two_phase.generate(prompt, NEW) for prompt in PROMPTS]
        assert min(map(len, ended)) < NEW


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("family", FAMILIES)
def test_pairs_with_one_decode_write_together_what_each_writes_alone(family: str, first_token: FirstToken) -> None:
    model = tiny_model(family)
    plans = (STAGED, Plan(decode=STAGED.decode), Plan.unified(STAGED.decode))
    pairs = [TwoPhaseModel(model, plan, first_token=first_token) for plan in plans]
    alone = [pair.generate(prompt, NEW) for pair in pairs for prompt in PROMPTS]
    assert pairs[0].greedy_batch(PROMPTS, NEW, beside=pairs[1:]) == alone
    model.model.generation_config.eos_token_id = alone[4][2]
    ended = [pair.generate(prompt, NEW) for pair in pairs for prompt in PROMPTS]
    assert pairs[0].greedy_batch(PROMPTS, NEW, beside=pairs[1:]) == ended != alone


def test_prompts_of_one_token_are_begun_by_decode_whatever_prefill_there_is() -> None:
    model = tiny_llama()
    pairs = [TwoPhaseModel(model, plan) for plan in (STAGED, Plan(decode=STAGED.decode))]
    assert pairs[0].greedy_batch([[5], [9]], NEW, beside=pairs[1:]) == [pairs[0].generate([token], NEW) for token in (5, 9)] * 2


def test_pairs_decode_alike_that_have_the_same_decode_and_nothing_else_counts() -> None:
    model = tiny_llama()
    pair = TwoPhaseModel(model, STAGED)
    assert pair.decodes_as(TwoPhaseModel(model, Plan.unified(STAGED.decode)))
    others = [
        TwoPhaseModel(tiny_llama(), STAGED),
        TwoPhaseModel(model, STAGED, first_token="prefill"),
        TwoPhaseModel(model, Plan(decode=Removal([Drop(0), Drop(1)]))),
        TwoPhaseModel(model, Plan(decode=Removal([Drop(0), Drop(1), Shrink(3, "mlp", (1,))]))),
        TwoPhaseModel(model, STAGED.selecting((FirstOnly(4),))),
    ]
    assert [pair.decodes_as(other) for other in others] == [False] * len(others)
    weight = dict(model.blocks[2].named_parameters())["mlp.down_proj.weight"]
    changed = with_weights(model.blocks[2], {"mlp.down_proj.weight": weight * 2})
    layer = next(layer for layer in STAGED.layers("decode", model.block_count) if layer.block == 2)
    recovered = TwoPhaseModel(model, STAGED, {LayerOf.at(STAGED, "decode", layer): changed})
    assert not pair.decodes_as(recovered)


@pytest.mark.parametrize("lengths", [(40, 1, 20, 2, 3, 39), (7, 7, 7), (2, 9, 1), (9, 10), (10, 9), (8, 10, 9, 8)])
@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_prompts_of_any_lengths_in_any_order_have_their_own_texts(lengths: tuple[int, ...], first_token: FirstToken) -> None:
    two_phase = TwoPhaseModel(tiny_llama(), STAGED, first_token=first_token)
    prompts = [[(7 * number + place) % 250 for place in range(length)] for number, length in enumerate(lengths)]
    assert two_phase.greedy_batch(prompts, NEW) == [two_phase.generate(prompt, NEW) for prompt in prompts]


def test_prefill_reads_hardly_any_padding() -> None:
    model, read = tiny_llama(), 0
    two_phase = TwoPhaseModel(model, STAGED, first_token="prefill")
    prompts = [[5] * length for length in (64, 4, 4, 4, 60, 5)]

    def count(_module: object, given: tuple[torch.Tensor, ...]) -> None:
        nonlocal read
        read += given[0].shape[:2].numel()

    hook = model.blocks[2].get_submodule("mlp.gate_proj").register_forward_pre_hook(count)
    two_phase.greedy_batch(prompts, 1)
    hook.remove()
    assert read == 2 * 64 + 4 * 5


def test_a_prompt_of_many_that_is_too_long_is_refused() -> None:
    with pytest.raises(PdtrimError, match="the prompt with what follows it needs 521 positions"):
        TwoPhaseModel(tiny_model("opt"), STAGED).greedy_batch([[1], [2] * 512], NEW)
