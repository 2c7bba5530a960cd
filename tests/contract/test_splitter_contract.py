"""Broken components are caught by the splitter contract, each by the test that is meant for it."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import CostModel, Plan, Requests, StageSplitter, measure
from pdtrim_core.testing import (
    SplitterContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]
    from random import Random


class GiveBackTheBest(StageSplitter):
    """Gives back the one element that brings most."""

    name = "the-best"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        if not len(plan.decode):
            return plan
        trials = [Plan(prefill=plan.decode.without(element), decode=plan.decode) for element in plan.decode]
        scores = yield from measure(trials)
        return trials[scores.index(max(scores))]


class AsksForAnotherDecode(StageSplitter):
    """Gives an element back to both stages."""

    name = "other-decode-asked"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield Plan.unified(plan.decode.without(*plan.decode.elements[:1]))
        return plan


class ReturnsAnotherDecode(StageSplitter):
    """Gives everything back to decode."""

    name = "other-decode-returned"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield from ()
        return Plan()


class ReturnsNothing(StageSplitter):
    """Forgets to return a plan."""

    name = "returns-nothing"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield plan
        return None  # type: ignore[return-value]


class NeedsAnElement(StageSplitter):
    """Takes for granted that there is an element."""

    name = "needs-an-element"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield Plan(prefill=plan.decode.without(plan.decode.elements[0]), decode=plan.decode)
        return plan


class SparesAnything(StageSplitter):
    """Gives back one element at random, from a generator that hands out others at each call."""

    name = "spares-anything"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield from ()
        own = random.Random(os.urandom(8))
        kept_in_prefill = [element for element in plan.decode if own.random() < 0.5]
        return Plan(prefill=plan.decode.without(*kept_in_prefill), decode=plan.decode)


class SparesTheSilent(StageSplitter):
    """Gives back whatever does no harm."""

    name = "spares-the-silent"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        start = yield from measure(plan)
        current = plan
        for element in plan.decode:
            trial = Plan(prefill=current.prefill.without(element), decode=plan.decode)
            if (yield from measure(trial)) >= start:
                current = trial
        return current


def test_a_good_splitter_passes_every_test(failing: Failing) -> None:
    assert failing(SplitterContract, GiveBackTheBest) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (AsksForAnotherDecode, "test_decode_stays_as_it_is"),
        (ReturnsAnotherDecode, "test_decode_stays_as_it_is"),
        (ReturnsNothing, "test_decode_stays_as_it_is"),
        (NeedsAnElement, "test_an_empty_removal_gives_the_dense_decode"),
        (SparesAnything, "test_the_same_seed_gives_the_same_split"),
        (SparesTheSilent, "test_a_silent_block_stays_out_of_prefill"),
    ],
)
def test_a_broken_splitter_is_caught(component: type[StageSplitter], test: str, failing: Failing) -> None:
    assert test in failing(SplitterContract, component)
