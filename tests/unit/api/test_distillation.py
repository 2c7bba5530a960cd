"""What a distiller is given: hidden states of the dense model, and a student that runs in their place."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from pdtrim_core.api import BlockModel, Merge, Student, TeacherBatches
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


HALVES = [torch.bfloat16, torch.float16]


def trained_in_float32(model: BlockModel) -> torch.nn.Module:
    return copy.deepcopy(model.blocks[PAIR.keep]).float().requires_grad_(requires_grad=True)


@pytest.mark.parametrize("family", ["llama", "opt", "gemma3", "gpt-neox", "qwen3-moe"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_student_in_float32_computes_so_what_the_model_gives_it(dtype: torch.dtype, attention: str, family: str) -> None:
    model, exact = (tiny_model(family, dtype=of, attn_implementation=attention) for of in (dtype, torch.float32))
    with torch.no_grad():
        for weight, rounded in zip(exact.model.parameters(), model.model.parameters(), strict=True):
            weight.copy_(rounded)
    (batch,) = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), PAIR)
    (wanted,) = TeacherBatches(PrefixCache(exact), training_items(SEQUENCES), PAIR)
    assert (batch.before_BTD.dtype, batch.after_BTD.dtype) == (torch.float32, torch.float32)
    with torch.no_grad():
        found_BTD = Student(model, PAIR, trained_in_float32(model))(batch)
        same_input = replace(wanted, before_BTD=batch.before_BTD)
        expected_BTD = Student(exact, PAIR, exact.blocks[PAIR.keep])(same_input)
        in_format_BTD = Student(model, PAIR, model.blocks[PAIR.keep])(batch)
    assert (found_BTD.dtype, in_format_BTD.dtype) == (torch.float32, dtype)
    # Rotary angles are rounded by the model; all else is in float32.
    worst = (in_format_BTD.float() - expected_BTD).abs().max()
    assert (found_BTD - expected_BTD).abs().max() < (worst if "opt" not in family else 1e-4)
    assert torch.equal(in_format_BTD, model.run(PAIR.keep, batch.before_BTD.to(dtype), batch.calls))


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize(("dtype", "error"), [(torch.bfloat16, 0.1), (torch.float16, 0.02)])
def test_gradients_through_the_logits_are_as_in_float32_however_small(dtype: torch.dtype, error: float, family: str) -> None:
    """A mean over 4096 positions, times a thousandth: in float16 its gradients at the logits are 0."""
    found, expected = (gradients_through_logits(tiny_model(family, dtype=of)) for of in (dtype, torch.float32))
    assert (found - expected).norm() < error * expected.norm()


def gradients_through_logits(model: BlockModel) -> torch.Tensor:
    student = Student(model, PAIR, trained_in_float32(model))
    sequences = [[(7 * row + 3 * column) % 256 for column in range(64)] for row in range(64)]
    (batch,) = TeacherBatches(PrefixCache(model, ExecutionOptions(batch_tokens=4096)), training_items(sequences), PAIR)
    with torch.enable_grad():
        parts = [logits.logsumexp(-1).sum() for logits in student.logits(batch, student(batch))]
        (1e-3 * torch.stack(parts).sum() / 4096).backward()  # type: ignore[no-untyped-call]
    gradients = [parameter.grad for parameter in student.parameters()]
    return torch.cat([gradient.flatten() for gradient in gradients if gradient is not None])
