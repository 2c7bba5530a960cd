"""A scorer that asks gets gradients, and leaves none behind; others work outside of inference mode and pay nothing."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from pdtrim_core.api import PdtrimError, ScoreContext, Scorer, Scores
from pdtrim_core.testing import ScorerContract, tiny_llama, tiny_model

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

SEQUENCES = [Random(number).choices(range(256), k=length) for number, length in enumerate((5, 9, 1, 14, 9))]


class Taylor(Scorer):
    """Scores a block by how little the loss is expected to change without it, to first order."""

    name = "taylor"
    needs_gradients: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Scores:
        for batch in context.token_batches():
            context.loss(batch).backward()  # type: ignore[no-untyped-call]
        return Scores(tuple(-importance(block) for block in context.model.blocks))


def importance(block: torch.nn.Module) -> float:
    return sum(float((w.grad * w.detach()).abs().sum()) for w in block.parameters() if w.grad is not None)


class TestTaylor(ScorerContract):
    component = Taylor


def scores_of(model: BlockModel, batch_tokens: int) -> tuple[float, ...]:
    with ScoreContext(model, SEQUENCES, batch_tokens=batch_tokens, gradients=True) as context:
        return Taylor().score(context).block


def computed_directly(model: BlockModel, sequences: Sequence[Sequence[int]]) -> list[float]:
    """Return the scores from the transformers model alone, one sequence at a time."""
    transformer = model.model.requires_grad_(requires_grad=True)
    count = sum(len(s) - 1 for s in sequences)
    with torch.enable_grad():
        for sequence in sequences:
            if len(sequence) > 1:
                ids = torch.tensor([sequence])
                logits = transformer(ids, use_cache=False).logits[0, :-1]
                (torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="sum") / count).backward()  # type: ignore[no-untyped-call]
    return [-importance(block) for block in model.blocks]


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "qwen3-moe"])
@pytest.mark.parametrize("batch_tokens", [1, 20, 512])
def test_a_gradient_scorer_gives_what_a_direct_computation_gives(family: str, batch_tokens: int) -> None:
    expected = computed_directly(tiny_model(family), SEQUENCES)
    assert scores_of(tiny_model(family), batch_tokens) == pytest.approx(expected, rel=1e-4)


def test_the_model_is_as_it_was_also_after_an_error() -> None:
    model = tiny_llama()
    before = [parameter.requires_grad for parameter in model.model.parameters()]
    scores_of(model, 20)

    def fails() -> None:
        with ScoreContext(model, SEQUENCES, gradients=True) as context:
            context.loss(next(context.token_batches())).backward()  # type: ignore[no-untyped-call]
            raise LookupError

    with pytest.raises(LookupError):
        fails()
    assert [parameter.requires_grad for parameter in model.model.parameters()] == before
    assert all(parameter.grad is None for parameter in model.model.parameters())


def test_without_asking_there_is_no_loss_and_nothing_is_switched_on() -> None:
    model = tiny_llama()
    with ScoreContext(model, SEQUENCES) as context:
        assert not any(parameter.requires_grad for parameter in model.model.parameters())
        with pytest.raises(PdtrimError) as caught:
            context.loss(next(context.token_batches()))
    assert str(caught.value) == "there are no gradients here: a scorer that takes them says needs_gradients = True"


def test_sequences_of_one_token_have_no_loss() -> None:
    with ScoreContext(tiny_llama(), [[1], [2]], gradients=True) as context, pytest.raises(PdtrimError) as caught:
        context.loss(next(context.token_batches()))
    assert str(caught.value) == "there are no sequences of two tokens or more to take a loss on: give longer samples"


@pytest.mark.parametrize("gradients", [False, True])
def test_between_two_batches_the_thread_is_in_the_mode_that_it_was_in(gradients: bool) -> None:
    for outside in (torch.enable_grad, torch.no_grad, torch.inference_mode):
        context = ScoreContext(tiny_llama(), SEQUENCES, batch_tokens=10, gradients=gradients)
        with outside():
            before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
            for _ in context.batches():
                assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before
                break
            assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


def test_hidden_states_can_take_part_in_a_gradient_where_a_scorer_asks() -> None:
    for gradients in (False, True):
        context = ScoreContext(tiny_llama(), SEQUENCES, gradients=gradients)
        batch = next(context.batches())
        assert not any(states.requires_grad for states in batch.hidden)
        assert any(states.is_inference() for states in batch.hidden) is not gradients


def test_the_padding_of_a_batch_is_marked_and_its_tokens_are_the_sequences() -> None:
    context = ScoreContext(tiny_llama(), SEQUENCES, batch_tokens=20)
    batches = list(context.token_batches())
    found = [ids[mask].tolist() for batch in batches for ids, mask in zip(batch.ids_BT, batch.is_token_BT, strict=True)]
    assert sorted(found) == sorted(SEQUENCES)
    assert all(batch.ids_BT.numel() <= 20 for batch in batches)
