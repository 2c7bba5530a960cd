"""Scoring and generating with the model on pretended accelerators: the numbers of the processor, and few waits of the host."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from pdtrim_core import Drop, KvOnly, Plan, Removal
from pdtrim_core.api import ScoreContext
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.side_by_side import compare
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.testing import FAMILIES, prune_context, tiny_model
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.pruners.shortgpt import ShortGpt
from tests.pretend_accelerator import PretendAccelerator
from tests.unit.execution.test_staged_model import some_items

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdtrim_core.api import BlockModel

PLAN = Plan(Removal([KvOnly(4)]), Removal([Drop(1)]))
PLANS = [Plan(), Plan(decode=Removal([Drop(2)])), PLAN]
WAITS = 3
"""What the host may wait for, a batch."""
ITEMS = some_items()


def numbers_of(model: BlockModel, plans: Sequence[Plan]) -> tuple[list[float], list[list[int]]]:
    """The log-probabilities of all choices, and what the plans generate."""
    caches = [PrefixCache(model, ExecutionOptions(batch_tokens=64, packed=packed)) for packed in (False, True)]
    scored = [
        value
        for cache in caches
        for plan in plans
        for values in StagedModel(cache, plan).loglikelihoods(ITEMS)
        for value in values
    ]
    pairs = [TwoPhaseModel(model, plan) for plan in plans]
    prompts = [item.prompts[0] for item in ITEMS[:3]]
    made = [text for pair in pairs for text in pair.greedy_batch(prompts, 6)]
    return scored, [*made, *(pair.generate(prompts[0], 6) for pair in pairs)]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_scores_and_texts_are_those_on_the_processor(family: str, count: int) -> None:
    scored, made = numbers_of(tiny_model(family), PLANS)
    with PretendAccelerator(count) as there:
        found, found_made = numbers_of(there.tiny(family), PLANS)
    # Attention is computed in another way there.
    assert max(abs(one - other) for one, other in zip(scored, found, strict=True)) < 1e-3
    assert made == found_made


def test_two_devices_give_the_numbers_of_one() -> None:
    found = []
    for count in (1, 2):
        with PretendAccelerator(count) as there:
            found.append(numbers_of(there.tiny(), PLANS)[0])
    one, two = (torch.tensor(values) for values in found)
    assert units_apart(one, two) <= ROUNDING


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("measure", ["loglikelihoods", "scores", "divergences", "overlaps", "compared"])
def test_the_host_waits_at_most_three_times_a_batch(measure: str, count: int) -> None:
    with PretendAccelerator(count) as there:
        cache = PrefixCache(there.tiny(), ExecutionOptions(batch_tokens=64))
        with there.counting() as waits:
            getattr(StagedModel(cache, PLAN), measure)(ITEMS)
        assert 0 < len(waits) <= WAITS * len(cache.groups(ITEMS)), waits


@pytest.mark.parametrize("count", [1, 2])
def test_the_host_waits_at_most_three_times_a_batch_for_comparisons_and_means(count: int) -> None:
    texts = [item.tokens for item in ITEMS]
    with PretendAccelerator(count) as there:
        model = there.tiny()
        cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
        with there.counting() as waits:
            compare(cache, [StagedModel(cache, plan) for plan in PLANS[:1]], ITEMS)
        assert 0 < len(waits) <= WAITS * len(cache.groups(ITEMS)), waits
        states = ScoreContext(model, texts, batch_tokens=64)
        batches = len(list(states.token_batches()))
        with there.counting() as waits:
            states.mean_over_tokens(lambda one, other: torch.cosine_similarity(one, other, dim=-1))
        assert 0 < len(waits) <= WAITS * batches, waits
        with there.counting() as waits:
            ShortGpt().prune(prune_context(model, texts, blocks=2, parameters=1, batch_tokens=64))
        assert 0 < len(waits) <= WAITS * batches, waits
