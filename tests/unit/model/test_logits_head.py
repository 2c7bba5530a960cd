"""The head of logits has its input in one piece, whatever a model gives it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.logits_head import give_in_one_piece
from pdtrim_core.plan.plan import Plan
from pdtrim_core.testing import tiny_llama, tiny_model

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13], [14, 15]]


def watched(model: BlockModel) -> list[bool]:
    """Return whether each input of the head was in one piece, filled while the model runs."""
    found: list[bool] = []
    head = model.model.get_output_embeddings()
    head.register_forward_hook(lambda _head, given, _made: found.append(given[0].is_contiguous()))
    return found


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_texts_that_generate_together_give_it_one_piece(family: str) -> None:
    model = tiny_model(family)
    found = watched(model)
    TwoPhaseModel(model, Plan()).greedy_batch(PROMPTS, 3)
    assert len(found) >= 3
    assert all(found)


def test_so_does_generate_of_transformers_itself() -> None:
    model = tiny_llama()
    found = watched(model)
    model.model.generate(torch.tensor([prompt[:2] for prompt in PROMPTS]), max_new_tokens=2, do_sample=False, pad_token_id=0)
    assert all(found)


def test_what_it_makes_is_the_same() -> None:
    head = nn.Linear(6, 50, bias=False).requires_grad_(requires_grad=False)
    hidden_BTD = torch.randn(4, 3, 6)
    wanted: Tensor = head(hidden_BTD[:, -1:].contiguous())
    give_in_one_piece(head)
    assert torch.equal(head(hidden_BTD[:, -1:]), wanted)
    assert torch.equal(copy.deepcopy(head)(hidden_BTD[:, -1:]), wanted)


def test_it_is_let_so_once() -> None:
    head = nn.Linear(6, 50)
    give_in_one_piece(head)
    give_in_one_piece(head)
    assert len(head._forward_pre_hooks) == 1


def test_a_model_may_have_no_head() -> None:
    give_in_one_piece(None)
