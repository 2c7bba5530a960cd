"""Decode that reads only some of a prompt's K/V: one pass and two phases agree, and the rest of the prompt does not matter."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, Item, KvOnly, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.plan.selections import Edges, FirstOnly
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import MERGE, replacements, two_phase_gaps

pytestmark = pytest.mark.numeric

ALL = range(6)
EDGES = Plan(selections=tuple(Edges(block, 0.1, 0.2) for block in ALL))
PLANS = {
    "edges in all blocks of the dense model": EDGES,
    "first token in all blocks": Plan(selections=tuple(map(FirstOnly, ALL))),
    "both, with drops in decode alone": Plan(
        decode=Removal([Drop(1)]), selections=(FirstOnly(0), Edges(2, 0.3, 0.1), FirstOnly(5))
    ),
    "K/V only": Plan(Removal([KvOnly(4)]), Removal([Drop(2)]), selections=(Edges(4, 0.1, 0.1), FirstOnly(5))),
    "a merge in decode alone": Plan(Removal([Drop(1)]), Removal([Drop(1), MERGE]), selections=(Edges(2, 0.1, 0.1),)),
    "a merge in both": Plan.unified(Removal([MERGE])).selecting([FirstOnly(2), Edges(4, 0.1, 0.1)]),
}
FIRST_TOKENS: tuple[FirstToken, ...] = ("decode", "prefill")


def items() -> list[Item]:
    """Long prompts, of which something is left out, with one choice and with several of many tokens; and a short one."""
    rng = torch.Generator().manual_seed(3)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(256, (count,), generator=rng).tolist())

    return [
        Item((tokens(61),), (tokens(4), tokens(3)), 0, (1, 1), "long"),
        Item((tokens(40),), (tokens(5),), 0, (1,), "longer than the ends"),
        Item((tokens(3),), (tokens(3),), 0, (1,), "short"),
    ]


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_agrees_with_two_phases(family: str, first_token: FirstToken) -> None:
    model = tiny_model(family)
    modules = replacements(model)
    gaps = two_phase_gaps(model, PLANS, lambda plan: modules, items(), first_token)
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}


def test_it_does_with_eager_attention_and_fewer_heads() -> None:
    for family in ("llama", "gemma3"):
        model = tiny_model(family)
        model.model.set_attn_implementation("eager")
        plan = Plan(decode=Removal([Shrink(2, "attention", (1,))]), selections=(Edges(2, 0.1, 0.1), FirstOnly(4)))
        gaps = two_phase_gaps(model, {"": plan}, lambda plan: {}, items(), "decode")
        assert gaps[""] < 1e-4


def logits(model: BlockModel, plan: Plan, prompt: list[int]) -> torch.Tensor:
    return TwoPhaseModel(model, plan).continuation_logits(prompt, [7, 8, 9])


@pytest.mark.parametrize(("plan", "read"), [(Plan(selections=tuple(map(FirstOnly, ALL))), 1), (EDGES, 16)])
def test_the_middle_of_a_prompt_does_not_reach_decode_and_its_ends_do(plan: Plan, read: int) -> None:
    # Below its last block nothing of the middle reaches the ends: there the K/V are those of the tokens themselves.
    model = tiny_llama(num_hidden_layers=1)
    plan = plan.selecting(plan.selections[:1])
    prompt = list(range(60, 120))
    changed = [*prompt[:read], *[(token + 9) % 256 for token in prompt[read:40]], *prompt[40:]]
    at_head = [5, *prompt[1:]]
    assert torch.allclose(logits(model, plan, prompt), logits(model, plan, changed), atol=1e-4)
    assert not torch.allclose(logits(model, plan, prompt), logits(model, plan, at_head), atol=1e-2)
    assert not torch.allclose(logits(model, Plan(), prompt), logits(model, Plan(), changed), atol=1e-2)


@pytest.mark.parametrize("first_token", FIRST_TOKENS)
def test_prompts_generate_together_what_they_generate_alone(first_token: FirstToken) -> None:
    two_phase = TwoPhaseModel(tiny_llama(), PLANS["both, with drops in decode alone"], first_token=first_token)
    prompts = [list(item.prompts[0]) for item in items()]
    alone = [two_phase.generate(prompt, 8) for prompt in prompts]
    assert two_phase.greedy_batch(prompts, 8) == alone
    width = max(map(len, prompts))
    ids_BT = torch.tensor([[258] * (width - len(prompt)) + prompt for prompt in prompts])
    mask_BT = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    made_BT = two_phase.generate_batch(ids_BT, mask_BT, max_length=width + 8, do_sample=False, pad_token_id=258)
    assert [made[: len(one)] for made, one in zip(made_BT[:, width:].tolist(), alone, strict=True)] == alone


def test_texts_that_end_early_take_their_selections_with_them() -> None:
    model = tiny_llama()
    two_phase = TwoPhaseModel(model, PLANS["first token in all blocks"])
    prompts = [list(item.prompts[0]) for item in items()]
    model.model.generation_config.eos_token_id = two_phase.generate(prompts[0], 2)[-1]
    assert two_phase.greedy_batch(prompts, 8) == [two_phase.generate(prompt, 8) for prompt in prompts]


def test_more_tokens_that_decode_runs_again_are_its_own() -> None:
    two_phase = TwoPhaseModel(tiny_llama(), PLANS["first token in all blocks"])
    prompt = list(items()[0].prompts[0])
    assert two_phase.generate(prompt, 4, recompute=len(prompt) - 1) == TwoPhaseModel(tiny_llama(), Plan()).generate(prompt, 4)


def test_plans_that_read_other_tokens_share_no_hidden_states() -> None:
    cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64))
    plans = [Plan(), *PLANS.values()][:3]
    found = [StagedModel(cache, plan).loglikelihoods(items()) for plan in plans]
    assert found[0] != found[1] != found[2] != found[0]
    assert [StagedModel(cache, plan).loglikelihoods(items()) for plan in plans] == found


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_llama()
    two_phase = TwoPhaseModel(model, EDGES)
    two_phase.generate(list(range(50)), 2)
    assert not any("forward" in vars(module) for module in model.model.modules())


@pytest.mark.parametrize(
    "make", [lambda model: StagedModel(PrefixCache(model), EDGES), lambda model: TwoPhaseModel(model, EDGES)]
)
def test_attention_that_takes_no_masks_is_refused(make: Callable[[BlockModel], object], monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    monkeypatch.setattr(BlockModel, "attention", "flash_attention_2")
    with pytest.raises(PdtrimError, match="flash_attention_2 does not take: open tiny llama with attn_implementation"):
        make(model)
