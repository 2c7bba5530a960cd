"""Broken components are caught by the contract of K/V selectors, each by the test that is meant for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pdtrim_core.api import Edges, FirstOnly, KvSelector, Selection
from pdtrim_core.testing import KvSelectorContract

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdtrim_core.api import SelectionContext, SelectionFacts

    Failing = Callable[..., set[str]]


class Last(KvSelector):
    """Lets the last block read the ends."""

    name = "last"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        return [Edges(context.blocks[-1], 0.1, 0.1)]


class Asks(Last):
    """Selects by attention, and says so."""

    name = "asks"
    needs_attention = True

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        ends = [Edges(block, 0.1, 0.1) for block in context.blocks]
        return [one for one, mass in zip(ends, context.masses(ends), strict=True) if float(mass.mean()) > 0.2]


class AsksInSilence(Asks):
    """Does not say that it looks at attention."""

    name = "asks-in-silence"
    needs_attention = False


class CountsFromZero(Last):
    """Takes the number of decode's blocks for their places."""

    name = "counts-from-zero"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        return [FirstOnly(number) for number in range(len(context.blocks))]


class Twice(Last):
    """Selects for a block twice."""

    name = "twice"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        return [FirstOnly(context.blocks[0]), Edges(context.blocks[0], 0.1, 0.1)]


class SaysNothing(Last):
    """Says that it selects nothing, and does."""

    name = "says-nothing"
    selects = False


class Remembers(Last):
    """Selects another block each time."""

    name = "remembers"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        SEEN.append(1)
        return [FirstOnly(context.blocks[len(SEEN) % 3])]


class LeavesAMode(Last):
    """Leaves the model in training mode."""

    name = "leaves-a-mode"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        context.model.model.train()
        return super().select(context)


class NeedsLongPrompts(Last):
    """Fails on short prompts, and says nothing before."""

    name = "needs-long-prompts"

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        assert min(context.prompt_tokens) > 50
        return super().select(context)


class RefusesAll(Last):
    """Has a problem with any prompts."""

    name = "refuses-all"

    def problems(self, facts: SelectionFacts) -> list[str]:
        return [f"no prompt of {facts.calibration} is good enough"]


SEEN: list[int] = []


@pytest.mark.parametrize("component", [Last, Asks])
def test_a_good_selector_passes_every_test(component: type[KvSelector], failing: Failing) -> None:
    assert failing(KvSelectorContract, component) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (AsksInSilence, "test_it_says_whether_it_asks_for_attention"),
        (CountsFromZero, "test_it_selects_for_blocks_of_decode"),
        (Twice, "test_it_selects_for_blocks_of_decode"),
        (SaysNothing, "test_it_says_whether_it_selects"),
        (Remembers, "test_the_same_pair_gives_the_same"),
        (LeavesAMode, "test_the_model_is_left_as_it_was"),
        (NeedsLongPrompts, "test_prompts_that_it_does_not_refuse_it_can_do"),
        (RefusesAll, "test_prompts_that_it_does_not_refuse_it_can_do"),
        (RefusesAll, "test_a_run_measures_what_its_plan_says"),
    ],
)
def test_a_broken_selector_is_caught(component: type[KvSelector], test: str, failing: Failing) -> None:
    SEEN.clear()
    assert failing(KvSelectorContract, component, test) == {test}
