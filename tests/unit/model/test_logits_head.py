"""The head of logits has its input in one piece, whatever a model gives it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.execution.sampling import sampled
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.logits_head import given_in_one_piece
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
    ids_BT = torch.tensor([prompt[:2] for prompt in PROMPTS])
    TwoPhaseModel(model, Plan()).generate_batch(ids_BT, torch.ones_like(ids_BT), max_length=4, pad_token_id=0, do_sample=False)
    assert found
    assert all(found)


def test_so_do_texts_that_are_written() -> None:
    model = tiny_llama()
    found = watched(model)
    sampled(model, PROMPTS, 6, seed=0)
    assert found
    assert all(found)


def test_what_it_makes_is_the_same_and_nothing_stays_at_the_model() -> None:
    head = nn.Linear(6, 50, bias=False).requires_grad_(requires_grad=False)
    hidden_BTD = torch.randn(4, 3, 6)
    wanted: Tensor = head(hidden_BTD[:, -1:].contiguous())
    with given_in_one_piece(head):
        assert torch.equal(head(hidden_BTD[:, -1:]), wanted)
    with pytest.raises(ZeroDivisionError), given_in_one_piece(head):
        raise ZeroDivisionError
    assert not head._forward_pre_hooks


def test_a_model_may_have_no_head() -> None:
    with given_in_one_piece(None):
        pass
