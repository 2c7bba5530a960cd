"""What a distiller is given: hidden states of the dense model, and a student that runs in their place."""

from __future__ import annotations

import copy

import pytest
import torch

from pdtrim_core.api import Merge, Student, TeacherBatches
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.pipeline.merge_store import training_items
from pdtrim_core.testing import tiny_model

PAIR = Merge(keep=3, drop=2)
SEQUENCES = [[(7 * row + 3 * column) % 256 for column in range(16)] for row in range(5)]
CLOSE = 1e-5


def hidden_states(family: str, sequence: list[int]) -> tuple[torch.Tensor, ...]:
    """Return the states in front of each block that the model's own forward gives."""
    with torch.inference_mode():
        states: tuple[torch.Tensor, ...] = (
            tiny_model(family).model(torch.tensor([sequence]), output_hidden_states=True, use_cache=False).hidden_states
        )
    return states


@pytest.mark.parametrize("family", ["llama", "gpt-neox"])
@pytest.mark.parametrize("batch_tokens", [16, 4096])
@pytest.mark.parametrize("merge", [PAIR, Merge(keep=1, drop=3)])
def test_batches_hold_the_dense_models_states_around_the_run(family: str, batch_tokens: int, merge: Merge) -> None:
    cache = PrefixCache(tiny_model(family), ExecutionOptions(batch_tokens=batch_tokens))
    batches = TeacherBatches(cache, training_items(SEQUENCES), merge)
    before, after = (torch.cat([getattr(batch, name) for batch in batches]) for name in ("before_BTD", "after_BTD"))
    assert len(batches) == (5 if batch_tokens == 16 else 1)
    assert len(before) == len(after) == len(SEQUENCES)
    expected = [hidden_states(family, sequence) for sequence in SEQUENCES]
    for states_BTD, depth in ((before, merge.blocks[0]), (after, merge.blocks[-1] + 1)):
        wanted_BTD = torch.cat([states[depth] for states in expected])
        # Batches may stand in another order than the sequences that they are made from.
        order, other = (sorted(range(5), key=lambda row, s=states: s[row].sum().item()) for states in (states_BTD, wanted_BTD))  # type: ignore[misc]
        torch.testing.assert_close(states_BTD[order], wanted_BTD[other], rtol=CLOSE, atol=CLOSE)


def test_batches_can_be_gone_through_again() -> None:
    batches = TeacherBatches(PrefixCache(tiny_model("llama")), training_items(SEQUENCES), PAIR)
    first, again = list(batches), list(batches)
    assert len(first) == len(again) == len(batches)
    assert all(torch.equal(one.after_BTD, other.after_BTD) for one, other in zip(first, again, strict=True))


def test_a_student_that_is_both_blocks_in_one_gives_the_dense_models_logits() -> None:
    """A pair whose first block is silent: the second alone computes what both do."""
    model = tiny_model("llama", silent={2})
    (batch,) = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), PAIR)
    student = Student(model, PAIR, model.blocks[3])
    with torch.no_grad():
        torch.testing.assert_close(student(batch), batch.after_BTD, rtol=CLOSE, atol=CLOSE)
        found = torch.cat(list(student.logits(batch, student(batch))))
        expected = torch.cat(list(student.logits(batch, batch.after_BTD)))
    torch.testing.assert_close(found, expected, rtol=CLOSE, atol=CLOSE)
    own = [model.model(torch.tensor([sequence]), use_cache=False).logits[0].detach() for sequence in SEQUENCES]
    sums = [sorted(logits.sum().item() for logits in rows) for rows in (found.view(5, 16, -1), own)]
    assert sums[0] == pytest.approx(sums[1], rel=1e-4)


def test_a_student_trains_what_is_not_frozen_and_gradients_reach_it_through_the_logits() -> None:
    model = tiny_model("llama")
    module = copy.deepcopy(model.blocks[PAIR.keep]).requires_grad_(requires_grad=True)
    module.get_submodule("self_attn.k_proj").requires_grad_(requires_grad=False)
    student = Student(model, PAIR, module)
    trained, frozen = student.parameters(), list(module.get_submodule("self_attn.k_proj").parameters())
    assert len(trained) == len(list(module.parameters())) - len(frozen)
    (batch,) = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), PAIR)
    with torch.enable_grad():
        loss = torch.stack([logits.square().mean() for logits in student.logits(batch, student(batch))]).sum()
        loss.backward()  # type: ignore[no-untyped-call]
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in trained)
    assert all(parameter.grad is None for parameter in (*frozen, *model.model.parameters()))
