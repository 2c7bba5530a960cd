"""The divergence from the dense model: against the whole distributions, worked out directly."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args
from unittest.mock import Mock, patch

import pytest
import torch
from torch import nn

from pdtrim_core.api import Along, Drop, Item, KvOnly, PdtrimError, Plan, Removal
from pdtrim_core.execution import staged_model as stages
from pdtrim_core.execution.distributions import divergence, overlap
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache, PreparedBatch
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model import block_model as model
from pdtrim_core.testing import tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import PLANS, replacements, some_items, two_phases_of

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from pdtrim_core.plan.plan import FirstToken

pytestmark = pytest.mark.numeric

# Rounding of float32 logits around 10, over six blocks.
CLOSE = 1e-4
ALONG: tuple[Along, ...] = get_args(Along)
UNIFIED = Plan.unified(Removal([Drop(1), Drop(4)]))


def kl(dense_NV: torch.Tensor, plan_NV: torch.Tensor) -> float:
    """KL(dense || plan) of logits, a token, in float64."""
    dense, plan = dense_NV.double().log_softmax(-1), plan_NV.double().log_softmax(-1)
    return float((dense.exp() * (dense - plan)).sum(-1).mean())


def full_logits(block_model: BlockModel, item: Item) -> torch.Tensor:
    """What the whole model says behind the prompt and all but the last token of the right choice."""
    prompt, choice = item.prompt_of(item.answer), item.choices[item.answer]
    with torch.inference_mode():
        logits: torch.Tensor = block_model.model(torch.tensor([[*prompt, *choice]]), use_cache=False).logits[0]
    return logits[len(prompt) - 1 : -1]


def test_a_unified_plan_diverges_as_the_model_without_those_blocks() -> None:
    dense, pruned = tiny_llama(), tiny_llama()
    pruned.model.model.layers = nn.ModuleList([block for index, block in enumerate(pruned.blocks) if index not in (1, 4)])
    pruned.config.num_hidden_layers = len(pruned.model.model.layers)
    items = some_items()
    found = StagedModel(PrefixCache(dense, ExecutionOptions(batch_tokens=64)), UNIFIED).divergences(items)
    for item, value in zip(items, found, strict=True):
        assert value == pytest.approx(kl(full_logits(dense, item), full_logits(pruned, item)), abs=CLOSE)
    assert min(found) > 0.01


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("name", PLANS)
def test_every_sort_of_plan_diverges_as_in_two_phases(name: str, first_token: FirstToken) -> None:
    dense = tiny_llama()
    staged = StagedModel(
        PrefixCache(dense, ExecutionOptions(first_token=first_token, batch_tokens=64)), PLANS[name], replacements(dense)
    )
    items = some_items()
    for item, value in zip(items, staged.divergences(items), strict=True):
        two_phases = two_phases_of(staged).continuation_logits(item.prompt_of(item.answer), item.choices[item.answer])
        assert value == pytest.approx(kl(full_logits(dense, item), two_phases), abs=CLOSE)


@pytest.mark.parametrize("family", ["gemma3", "opt", "mixtral"])
def test_other_families_diverge_as_in_two_phases(family: str) -> None:
    dense = tiny_model(family)
    staged = StagedModel(PrefixCache(dense, ExecutionOptions(batch_tokens=64)), Plan(Removal([KvOnly(4)]), Removal([Drop(2)])))
    items = some_items()
    for item, value in zip(items, staged.divergences(items), strict=True):
        two_phases = two_phases_of(staged).continuation_logits(item.prompt_of(item.answer), item.choices[item.answer])
        assert value == pytest.approx(kl(full_logits(dense, item), two_phases), abs=CLOSE)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_the_dense_model_does_not_diverge_from_itself(first_token: FirstToken) -> None:
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(first_token=first_token, batch_tokens=64))
    assert StagedModel(prefix_cache, Plan()).divergences(some_items()) == [0.0] * len(some_items())


def test_a_plan_that_changes_no_logit_does_not_diverge() -> None:
    """A block that is the identity is dropped, and prefill's tail is free."""
    prefix_cache = PrefixCache(tiny_llama(silent={2}), ExecutionOptions(batch_tokens=64))
    plan = Plan.unified(Removal([Drop(2)])).truncated_prefill(6)
    assert StagedModel(prefix_cache, plan).divergences(some_items()) == [0.0] * len(some_items())


@pytest.mark.parametrize("name", PLANS)
def test_no_divergence_is_negative(name: str) -> None:
    dense = tiny_llama()
    assert min(StagedModel(PrefixCache(dense), PLANS[name], replacements(dense)).divergences(some_items())) >= 0


def test_rounding_takes_no_divergence_below_0() -> None:
    """Distributions that differ in the last digit of float32 alone."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(500, 300, generator=generator).log_softmax(-1)
    nearly = dense + 1e-7 * torch.randn(500, 300, generator=generator)
    values = divergence(dense, nearly)
    assert ((dense.exp() * (dense - nearly)).sum(-1) < 0).any()
    assert (values >= 0).all()


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_divergences_do_not_depend_on_the_batch(batch_tokens: int, packed: bool) -> None:
    dense, items = tiny_llama(), some_items()
    usual = StagedModel(PrefixCache(dense, ExecutionOptions(batch_tokens=64)), PLANS["part of the drops in prefill"]).divergences(
        items
    )
    prefix_cache = PrefixCache(dense, ExecutionOptions(batch_tokens=batch_tokens, packed=packed))
    other = StagedModel(prefix_cache, PLANS["part of the drops in prefill"]).divergences(items)
    assert other == pytest.approx(usual, abs=CLOSE)


def test_divergences_come_in_the_order_of_the_items_and_as_often() -> None:
    items = some_items()
    staged = StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), UNIFIED)
    values = dict(zip(items, staged.divergences(items), strict=True))
    asked = [items[4], items[0], items[4]]
    assert staged.divergences(asked) == pytest.approx([values[item] for item in asked], abs=CLOSE)
    assert staged.divergences([]) == []


def test_other_choices_do_not_count() -> None:
    staged = StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), UNIFIED)
    whole = Item(((5, 6, 7),), ((1, 2), (3, 4), (9,)), 1, (1, 1, 1), "whole")
    alone = Item(((5, 6, 7),), ((3, 4),), 0, (1,), "alone")
    one, other = staged.divergences([whole, alone])
    assert one == pytest.approx(other, abs=CLOSE)


@pytest.mark.parametrize("positions", [1, 2, 7])
def test_the_head_runs_on_few_positions_at_a_time(positions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two sets of logits, no more positions than `HEAD_NUMBERS` allows one."""
    dense, items = tiny_llama(), some_items()
    prefix_cache = PrefixCache(dense)
    usual = StagedModel(prefix_cache, UNIFIED).divergences(items)
    for module in (model, stages):
        monkeypatch.setattr(module, "HEAD_NUMBERS", dense.config.vocab_size * positions)
    seen: list[int] = []
    head = dense.model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: seen.append(output.numel() // output.shape[-1]))
    try:
        chunked = StagedModel(prefix_cache, UNIFIED).divergences(items)
    finally:
        hook.remove()
    assert chunked == pytest.approx(usual, abs=CLOSE)
    assert max(seen) <= max(1, positions // 2)


def test_the_dense_blocks_run_once_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second plan asks for its own blocks alone, and for the head on both."""
    dense, items = tiny_llama(), some_items()
    prefix_cache = PrefixCache(dense, ExecutionOptions(budget=0))
    StagedModel(prefix_cache, UNIFIED).divergences(items)
    ran: list[int] = []
    run = type(dense).run

    def noted(self: BlockModel, index: int, *args: Any) -> torch.Tensor:
        ran.append(index)
        return run(self, index, *args)

    monkeypatch.setattr(type(dense), "run", noted)
    StagedModel(prefix_cache, Plan.unified(Removal([Drop(0)]))).divergences(items)
    assert ran == [1, 2, 3, 4, 5] * len(prefix_cache.batches([item.continued("right") for item in items]))


def test_what_is_kept_of_a_batch_are_the_scored_positions() -> None:
    dense, item = tiny_llama(), some_items()[3]
    prefix_cache = PrefixCache(dense)
    ((_, prepared),) = prefix_cache.batches([item.continued("right")])
    assert isinstance(prepared, PreparedBatch)
    with torch.inference_mode():
        kept = prepared.dense_hidden
    assert kept.shape == (len(item.choices[0]), dense.config.hidden_size)
    assert prepared.dense_hidden is kept


def test_the_model_is_as_before_after_divergences() -> None:
    dense = tiny_llama()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        logits = dense.model(ids).logits
    StagedModel(PrefixCache(dense), PLANS["K/V only of a merge"], replacements(dense)).divergences(some_items())
    with torch.inference_mode():
        assert torch.equal(dense.model(ids).logits, logits)
    assert all("forward" not in vars(block) for block in dense.blocks)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("name", PLANS)
def test_every_token_compares_as_in_two_phases(name: str, first_token: FirstToken) -> None:
    dense = tiny_llama()
    options = ExecutionOptions(first_token=first_token, batch_tokens=64)
    staged = StagedModel(PrefixCache(dense, options), PLANS[name], replacements(dense))
    items = some_items()
    for item, tokens in zip(items, staged.compared(items), strict=True):
        continuation = item.choices[item.answer]
        theirs = full_logits(dense, item).double().log_softmax(-1)
        ours = two_phases_of(staged).continuation_logits(item.prompt_of(item.answer), continuation).double().log_softmax(-1)
        assert len(tokens) == len(continuation)
        for token, dense_V, plan_V, target in zip(tokens, theirs, ours, continuation, strict=True):
            assert token.divergence == pytest.approx(float((dense_V.exp() * (dense_V - plan_V)).sum()), abs=CLOSE)
            assert token.same is bool(dense_V.argmax() == plan_V.argmax())
            assert token.overlap == pytest.approx(float(torch.minimum(dense_V.exp(), plan_V.exp()).sum()), abs=CLOSE)
            assert token.logprob == pytest.approx(float(plan_V[target]), abs=CLOSE)
            assert token.dense_logprob == pytest.approx(float(dense_V[target]), abs=CLOSE)


def test_the_dense_model_is_the_same_at_every_token() -> None:
    for tokens in StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), Plan()).compared(some_items()):
        for token in tokens:
            assert (token.divergence, token.same, token.logprob) == (0.0, True, token.dense_logprob)
            assert token.overlap == 1.0


def test_divergences_are_the_means_of_what_is_compared_token_by_token() -> None:
    staged = StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), UNIFIED)
    means = [sum(token.divergence for token in tokens) / len(tokens) for tokens in staged.compared(some_items())]
    assert staged.divergences(some_items()) == pytest.approx(means, rel=1e-9)


def test_overlaps_are_the_means_of_what_is_compared_token_by_token() -> None:
    staged = StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), UNIFIED)
    means = [sum(token.overlap for token in tokens) / len(tokens) for tokens in staged.compared(some_items())]
    assert max(means) < 1
    assert staged.overlaps(some_items(), "right") == pytest.approx(means, rel=1e-6)


def test_an_overlap_is_the_sum_of_the_smaller_probabilities_and_never_below_nothing() -> None:
    dense = torch.tensor([[0.5, 0.25, 0.25], [1.0, 0.0, 0.0], [0.2, 0.3, 0.5]])
    plan = torch.tensor([[0.25, 0.5, 0.25], [0.0, 0.5, 0.5], [0.2, 0.3, 0.5]])
    assert overlap(dense.log(), plan.log()).tolist() == pytest.approx([0.75, 0.0, 1.0], abs=1e-7)


def answered_items(dense: BlockModel, length: int = 9) -> list[Item]:
    """Items with the dense model's own answers, one token at a time."""
    reference = TwoPhaseModel(dense, Plan())
    return [replace(item, dense_answer=tuple(reference.generate(item.prompt_of(item.answer), length))) for item in some_items()]


@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
@pytest.mark.parametrize("name", PLANS)
def test_along_both_texts_a_plan_diverges_as_in_two_phases(name: str, packed: bool) -> None:
    """The mean over the tokens of the right choice and of the dense model's answer."""
    dense = tiny_llama()
    prefix_cache = PrefixCache(dense, ExecutionOptions(batch_tokens=64, packed=packed))
    staged = StagedModel(prefix_cache, PLANS[name], replacements(dense))
    items = answered_items(dense)
    found = {along: staged.divergences(items, along) for along in ALONG}
    for number, item in enumerate(items):
        prompt, texts = item.prompt_of(item.answer), [item.choices[item.answer], item.dense_answer]
        plain = TwoPhaseModel(dense, Plan())
        means = [
            kl(*(two_phases.continuation_logits(prompt, text) for two_phases in (plain, two_phases_of(staged)))) for text in texts
        ]
        lengths = [len(text) for text in texts]
        both = sum(mean * length for mean, length in zip(means, lengths, strict=True)) / sum(lengths)
        expected = {"right": means[0], "answers": means[1], "both": both}
        assert {along: found[along][number] for along in ALONG} == pytest.approx(expected, abs=CLOSE)


@pytest.mark.parametrize("along", ALONG)
def test_along_every_text_the_dense_model_is_itself(along: Along) -> None:
    dense = tiny_llama()
    for packed in (False, True):
        prefix_cache = PrefixCache(dense, ExecutionOptions(batch_tokens=64, packed=packed))
        staged, items = StagedModel(prefix_cache, Plan()), answered_items(dense)
        assert staged.divergences(items, along) == [0.0] * len(items)
        assert staged.overlaps(items, along) == [1.0] * len(items)


def test_items_without_an_answer_are_compared_along_the_right_choice() -> None:
    staged = StagedModel(PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64)), UNIFIED)
    assert staged.divergences(some_items()) == staged.divergences(some_items(), "right")
    with pytest.raises(PdtrimError, match=r"^the item 'item 0' has no answer of the dense model: "):
        staged.divergences(some_items(), "answers")


def test_the_dense_head_runs_twice_and_then_its_log_probabilities_are_kept() -> None:
    items, plans = some_items(), [Plan.unified(Removal([Drop(block)])) for block in range(1, 5)]
    counts, found = {}, {}
    for budget in (None, 0):
        model = tiny_llama()
        prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64, budget=budget))
        head = Mock(wraps=model.logits)
        with patch.object(model, "logits", head):
            found[budget] = [StagedModel(prefix_cache, plan).divergences(items) for plan in plans]
        batches = len(prefix_cache.batches([item.continued("both") for item in items]))
        counts[budget] = head.call_count / batches
    assert found[None] == found[0]  # to the last bit
    assert counts == {None: 2 + len(plans), 0: 2 * len(plans)}


def test_log_probabilities_leave_room_for_hidden_states() -> None:
    items = some_items()
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64, budget=40_000))
    for block in range(1, 5):
        StagedModel(prefix_cache, Plan.unified(Removal([Drop(block)]))).divergences(items)
        assert prefix_cache.kept_bytes <= prefix_cache.most_bytes <= 40_000


def test_the_dense_model_is_not_run_to_compare_it_with_itself() -> None:
    items = some_items()
    staged = StagedModel(PrefixCache(tiny_llama()), Plan())
    with patch.object(model.BlockModel, "run", Mock(side_effect=AssertionError)):
        assert (staged.divergences(items), staged.overlaps(items)) == ([0.0] * len(items), [1.0] * len(items))


def test_another_model_without_a_plan_is_compared_with_the_dense_one() -> None:
    items = some_items()
    staged = StagedModel(PrefixCache(tiny_llama(seed=1), dense=tiny_llama()), Plan())
    assert min(staged.divergences(items)) > 0
    assert max(staged.overlaps(items)) < 1
