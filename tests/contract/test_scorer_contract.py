"""Broken components are caught by the scorer contract, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from pdtrim_core.api import ScoreContext, Scorer, Scores, SimilarityScorer
from pdtrim_core.testing import (
    ScorerContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]

    from torch import Tensor


class FirstNorm(SimilarityScorer):
    """How little a block changes the norms."""

    name = "first-norm"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        change: Tensor = (after.norm(dim=-1) - before.norm(dim=-1)).abs()
        return -change


class OneScoreTooMany(FirstNorm):
    """One score for each block output and one for the embedding."""

    def score(self, context: ScoreContext) -> Scores:
        scores = super().score(context)
        return Scores((*scores.block, 0.0))


class NotANumber(FirstNorm):
    """A NaN among the scores."""

    def score(self, context: ScoreContext) -> Scores:
        return Scores((float("nan"), *super().score(context).block[1:]))


class UpsideDown(FirstNorm):
    """Lower is safer."""

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        return -super().similarity(before, after)


class CountsPadding(FirstNorm):
    """Averages over all columns of a batch."""

    def score(self, context: ScoreContext) -> Scores:
        sums, columns = [0.0] * context.block_count, 0
        for batch in context.batches():
            columns += batch.is_token_BT.numel()
            for block in range(context.block_count):
                sums[block] += float(self.similarity(batch.hidden[block], batch.hidden[block + 1]).sum())
        return Scores(tuple(value / columns for value in sums))


class AveragesBatches(FirstNorm):
    """Gives each batch the same weight, however many sequences it holds."""

    def score(self, context: ScoreContext) -> Scores:
        means = [
            [
                float(self.similarity(before, after)[batch.is_token_BT].sum() / batch.is_token_BT[0].sum())
                for before, after in zip(batch.hidden, batch.hidden[1:], strict=False)
            ]
            for batch in context.batches()
        ]
        return Scores(tuple(sum(of_block) / len(means) for of_block in zip(*means, strict=True)))


class DrawsTorch(FirstNorm):
    """Adds noise from torch's generator."""

    def score(self, context: ScoreContext) -> Scores:
        scores = super().score(context)
        return Scores(tuple(score - 1e-5 * float(torch.rand(())) for score in scores.block))


class ChangesAWeight(FirstNorm):
    """Tries what happens without one weight, and does not put it back."""

    def score(self, context: ScoreContext) -> Scores:
        scores = super().score(context)
        next(context.model.blocks[0].parameters()).data[0, 0] += 1e-6
        return scores


class LeavesAHook(FirstNorm):
    """Watches a block for ever, and halves what it gives."""

    def score(self, context: ScoreContext) -> Scores:
        scores = super().score(context)
        context.model.blocks[0].register_forward_hook(lambda module, args, output: output / 2)
        return scores


class LeavesAGradient(FirstNorm):
    """Differentiates, and leaves the gradients of one block behind, with no need of gradients in its name."""

    def score(self, context: ScoreContext) -> Scores:
        weight = next(context.model.blocks[1].parameters()).requires_grad_()
        with torch.enable_grad():
            weight.square().sum().backward()  # type: ignore[no-untyped-call]
        weight.requires_grad = False
        return super().score(context)


class LeavesItTrainable(FirstNorm):
    """Makes a weight take gradients for ever."""

    def score(self, context: ScoreContext) -> Scores:
        next(context.model.blocks[1].parameters()).requires_grad_()
        return super().score(context)


class LeavesItTraining(FirstNorm):
    """Leaves the whole model in the mode of training, which changes nothing that a tiny model computes."""

    def score(self, context: ScoreContext) -> Scores:
        context.model.model.train()
        return super().score(context)


class LeavesASilentHook(FirstNorm):
    """Watches a part of a block for ever, and changes nothing."""

    def score(self, context: ScoreContext) -> Scores:
        context.model.blocks[0].get_submodule("mlp").register_forward_pre_hook(lambda module, args: None)
        return super().score(context)


class LeavesAPatch(FirstNorm):
    """Leaves a forward of its own in the place of a block's, which does the same."""

    def score(self, context: ScoreContext) -> Scores:
        block = context.model.blocks[0]
        vars(block)["forward"] = block.forward
        return super().score(context)


class ChangesABuffer(FirstNorm):
    """Turns the rotary angles a little."""

    def score(self, context: ScoreContext) -> Scores:
        scores = super().score(context)
        context.model.model.get_buffer("model.rotary_emb.inv_freq").mul_(1 + 1e-6)
        return scores


class PutsBack(FirstNorm):
    """Does all of that, and puts it back."""

    needs_gradients: ClassVar[bool] = True

    def score(self, context: ScoreContext) -> Scores:
        block = context.model.blocks[0]
        handle = block.register_full_backward_hook(lambda module, before, after: None)
        for batch in context.token_batches():
            context.loss(batch).backward()  # type: ignore[no-untyped-call]
        handle.remove()
        context.model.model.train()
        context.model.model.eval()
        with context.model.patched({0: block.forward}):
            return super().score(context)


@pytest.mark.parametrize("component", [FirstNorm, PutsBack])
def test_a_good_scorer_passes_every_test(component: type[Scorer], failing: Failing) -> None:
    assert failing(ScorerContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (OneScoreTooMany, "test_it_gives_one_finite_score_a_block_and_a_pair_or_no_pairs"),
        (NotANumber, "test_it_gives_one_finite_score_a_block_and_a_pair_or_no_pairs"),
        (UpsideDown, "test_a_silent_block_is_ranked_first"),
        (CountsPadding, "test_padding_does_not_matter"),
        (AveragesBatches, "test_the_batch_size_does_not_matter"),
        (DrawsTorch, "test_the_same_model_and_tokens_give_the_same_scores"),
        (ChangesAWeight, "test_the_model_is_left_as_it_was"),
        (LeavesAHook, "test_the_model_is_left_as_it_was"),
        (LeavesAGradient, "test_the_model_is_left_as_it_was"),
        (LeavesItTrainable, "test_the_model_is_left_as_it_was"),
        (LeavesItTraining, "test_the_model_is_left_as_it_was"),
        (LeavesASilentHook, "test_the_model_is_left_as_it_was"),
        (LeavesAPatch, "test_the_model_is_left_as_it_was"),
        (ChangesABuffer, "test_the_model_is_left_as_it_was"),
    ],
)
def test_a_broken_scorer_is_caught(component: type[Scorer], test: str, failing: Failing) -> None:
    assert failing(ScorerContract, component, test) == {test}
