"""Prompts that generate together make what each makes alone, whichever stage makes the first token; greedy choices are told."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import Drop, Item, Plan, Removal
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model

pytestmark = pytest.mark.numeric

PROMPTS = ([5, 6, 7, 8, 9, 30, 31, 32, 33, 34, 35], [11, 12, 13], [99])
PAD, WIDTH, NEW = 258, 11, 10
STAGED = Plan(prefill=Removal([Drop(0), Drop(1)]), decode=Removal([Drop(0), Drop(1), Drop(3)]))


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    gaps = [WIDTH - len(prompt) for prompt in PROMPTS]
    ids_BT = torch.tensor([[PAD] * gap + prompt for gap, prompt in zip(gaps, PROMPTS, strict=True)])
    mask_BT = torch.tensor([[0] * gap + [1] * (WIDTH - gap) for gap in gaps])
    return ids_BT, mask_BT


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
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


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
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


@pytest.mark.parametrize("packed", [True, False])
def test_a_choice_is_greedy_when_each_of_its_tokens_is_the_likeliest(packed: bool) -> None:
    model = tiny_llama()
    staged, two_phase = (
        StagedModel(PrefixCache(model, ExecutionOptions(packed=packed, budget=0)), STAGED),
        TwoPhaseModel(model, STAGED),
    )
    items = []
    for number, prompt in enumerate(PROMPTS):
        made = tuple(two_phase.generate(prompt, 4))
        choices = (made, (*made[:3], (made[3] + 1) % 256), ((made[0] + 1) % 256, *made[1:]), made[:1])
        items.append(Item((tuple(prompt),), choices, 0, (1,) * 4, str(number)))
    scores = staged.scores(items)
    assert [[scored.greedy for scored in of_item] for of_item in scores] == [[True, False, False, True]] * 3
    sums = staged.loglikelihoods(items)
    assert [tuple(scored.logprob for scored in of_item) for of_item in scores] == sums
