"""Broken components are caught by the objective contract, each by the test that is meant for it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

import pytest

from pdtrim_core.api import Item, Objective, Staged
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import (
    ObjectiveContract,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    Failing = Callable[..., set[str]]
    from collections.abc import Sequence


class Right(Objective):
    """Probability of the right choice."""

    name = "right"
    unit = "probability"
    best_item: ClassVar[float | None] = 1.0

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        sums = staged.loglikelihoods(items)
        return [2.0 ** max(-1000.0, of_item[item.answer]) for item, of_item in zip(items, sums, strict=True)]

    def score(self, mean: float) -> float:
        return 100 * mean


class ComparedWithNeighbours(Right):
    """Divides by the best item of the batch."""

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        values = super().item_values(staged, items)
        return [value / max(values) for value in values]


class OneMeanForAll(Right):
    """Averages itself."""

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        values = super().item_values(staged, items)
        return [sum(values) / len(values)]


class LowerIsBetter(Right):
    """Forgets that points rise."""

    def score(self, mean: float) -> float:
        return 100 - 100 * mean


class Unbounded(Right):
    """Gives points beyond 100."""

    def score(self, mean: float) -> float:
        return 1000 * mean


class EdgeWithoutSlope(Right):
    """Allows no mean beyond the best."""

    def score(self, mean: float) -> float:
        return 100 * (1 - math.sqrt(1 - mean))


class TooLowABest(Right):
    """Claims that no item can reach more than a half."""

    best_item: ClassVar[float | None] = 0.5


class CountsBlocks(Right):
    """Takes a little off for each block that is still there, which no answer tells."""

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        lost = len(staged.plan.decode) if isinstance(staged, StagedModel) else 0
        return [value * 0.99 ** (6 - lost) for value in super().item_values(staged, items)]


class Doubts(Objective):
    """Is content where no wrong choice is much likelier than the right one, which is easiest for a model that knows nothing."""

    name = "doubts"
    best_item: ClassVar[float | None] = 1.0

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        sums = staged.loglikelihoods(items)
        return [max(0.0, 1 - max(max(s) - s[item.answer], 0.0) / 20) for item, s in zip(items, sums, strict=True)]

    def score(self, mean: float) -> float:
        return 100 * mean


class WeightlessItems(Right):
    """Counts the items with many choices only."""

    def weight(self, item: Item) -> float:
        return len(item.choices) - 2.0


class LeavesAPatch(Right):
    """Looks at what the head is given, and stays there."""

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        if isinstance(staged, StagedModel):
            head = staged._model.model.lm_head
            vars(head)["forward"] = head.forward
        return super().item_values(staged, items)


def test_a_good_objective_passes_every_test(failing: Failing) -> None:
    assert failing(ObjectiveContract, Right) == set()


@pytest.mark.parametrize(
    ("component", "test"),
    [
        (ComparedWithNeighbours, "test_a_value_depends_on_its_item_alone"),
        (OneMeanForAll, "test_a_value_depends_on_its_item_alone"),
        (OneMeanForAll, "test_a_real_model_has_points_too"),
        (LeavesAPatch, "test_a_real_model_has_points_too"),
        (LowerIsBetter, "test_points_go_from_0_to_100_and_rise_with_the_right_choice"),
        (Unbounded, "test_points_go_from_0_to_100_and_rise_with_the_right_choice"),
        (EdgeWithoutSlope, "test_points_have_a_slope_everywhere"),
        (TooLowABest, "test_no_item_is_better_than_the_best_item"),
        (Doubts, "test_a_damaged_model_is_not_better"),
        (CountsBlocks, "test_losing_a_silent_block_changes_no_value"),
        (WeightlessItems, "test_every_weight_is_positive"),
    ],
)
def test_a_broken_objective_is_caught(component: type[Objective], test: str, failing: Failing) -> None:
    assert failing(ObjectiveContract, component, test) == {test}
