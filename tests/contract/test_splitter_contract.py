"""Broken components are caught by the splitter contract, each by the test that is meant for it."""

from __future__ import annotations

import os
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

import pytest
import torch

from pdtrim_core.api import AtLeast, CostModel, PdtrimError, Plan, Requests, StageFacts, StageSplitter, measure
from pdtrim_core.testing import (
    SplitterContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

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


class HopesForTheSum(StageSplitter):
    """Measures each element alone, and gives back all that gain together, which nobody measured."""

    name = "hopes-for-the-sum"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        start = yield from measure(plan)
        scores = yield from measure([Plan(prefill=plan.decode.without(element), decode=plan.decode) for element in plan.decode])
        gaining = [element for element, score in zip(plan.decode, scores, strict=True) if score > start]
        return Plan(prefill=plan.decode.without(*gaining), decode=plan.decode)


class MeasuresNothing(StageSplitter):
    """Gives back everything without a look."""

    name = "measures-nothing"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield from ()
        return Plan(decode=plan.decode)


class GivesUpOnAFloor(StageSplitter):
    """Returns a plan that was cut short, whose score it was never told."""

    name = "gives-up-on-a-floor"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        dense_prefill = Plan(decode=plan.decode)
        yield AtLeast(dense_prefill, 100.0)
        return dense_prefill


class ReturnsTheGiven(StageSplitter):
    """Measures one other plan, and returns what it was given, which is good as well."""

    name = "returns-the-given"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield from measure(Plan(decode=plan.decode))
        return plan


class TimesTheModel(GiveBackTheBest):
    """Looks at the dense model, and leaves it alone."""

    name = "times-the-model"
    needs_model: ClassVar[bool] = True

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        assert costs.model is not None
        with watched(costs.model.blocks[0]):
            costs.model.model(torch.zeros((1, 4), dtype=torch.long))
        return (yield from super().split(plan, costs, rng))


@contextmanager
def watched(block: torch.nn.Module) -> Iterator[None]:
    handle = block.register_forward_hook(lambda module, args, output: None)
    yield
    handle.remove()


class LeavesTheModelTraining(TimesTheModel):
    """Forgets to put a block back into its mode."""

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        assert costs.model is not None
        costs.model.blocks[3].train()
        return (yield from super().split(plan, costs, rng))


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


class UnifiedUnderACeiling(StageSplitter):
    """Takes prefill like decode if that is cheap enough, and says before a run where it cannot be."""

    name = "unified-under-a-ceiling"

    @property
    def prefill_ceiling(self) -> float:
        return 0.8

    def problems(self, facts: StageFacts) -> list[str]:
        return ["out of reach"] if facts.least_unified_prefill > 0.8 else []

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        if costs.cost(plan, "prefill") > 0.8:
            raise PdtrimError("out of reach")
        yield from measure(plan)
        return plan


class ForgetsItsCeiling(UnifiedUnderACeiling):
    """Gives back all that there is room for, and more."""

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        dense = Plan(decode=plan.decode)
        yield from super().split(plan, costs, rng)
        yield from measure(dense)
        return dense


class RefusesOnlyBefore(UnifiedUnderACeiling):
    """Calls a ceiling out of reach, and splits all the same."""

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        yield from measure(plan)
        return plan


@pytest.mark.parametrize("component", [GiveBackTheBest, ReturnsTheGiven, TimesTheModel])
def test_a_good_splitter_passes_every_test(component: type[StageSplitter], failing: Failing) -> None:
    assert failing(SplitterContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (AsksForAnotherDecode, "test_decode_stays_as_it_is"),
        (ReturnsAnotherDecode, "test_decode_stays_as_it_is"),
        (ReturnsNothing, "test_decode_stays_as_it_is"),
        (HopesForTheSum, "test_it_returns_the_plan_that_it_was_given_or_one_that_it_measured"),
        (MeasuresNothing, "test_it_returns_the_plan_that_it_was_given_or_one_that_it_measured"),
        (GivesUpOnAFloor, "test_it_returns_the_plan_that_it_was_given_or_one_that_it_measured"),
        (LeavesTheModelTraining, "test_the_model_is_left_as_it_was"),
        (NeedsAnElement, "test_an_empty_removal_gives_the_dense_decode"),
        (SparesAnything, "test_the_same_seed_gives_the_same_split"),
        (ForgetsItsCeiling, "test_its_ceiling_on_prefill_holds"),
        (RefusesOnlyBefore, "test_what_it_calls_out_of_reach_is_refused"),
        (SparesTheSilent, "test_a_silent_block_stays_out_of_prefill"),
    ],
)
def test_a_broken_splitter_is_caught(component: type[StageSplitter], test: str, failing: Failing) -> None:
    assert failing(SplitterContract, component, test) == {test}


def test_a_splitter_that_refuses_what_it_calls_out_of_reach_keeps_the_two_promises(failing: Failing) -> None:
    """With no block removed its ceiling is out of reach, which the other tests of the contract do not expect."""
    kept = {"test_its_ceiling_on_prefill_holds", "test_what_it_calls_out_of_reach_is_refused"}
    assert not kept & failing(SplitterContract, UnifiedUnderACeiling)
