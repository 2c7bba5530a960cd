"""What every objective must hold to."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar

import pytest

from pdtrim_core.api.item_kinds import Objective
from pdtrim_core.data.items import Along, Item, Sample, encode
from pdtrim_core.data.readings import standard_error
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.testing.contracts.shared import (
    SILENT,
    TOLERANCE,
    check_component,
    contract,
    no_global_randomness,
    rng_of,
)
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import ByteTokenizer, tiny_llama

MADE_UP = 200
"""Items that are made up for a comparison of two models."""


@dataclass(frozen=True)
class FixedStaged:
    """A model under a plan whose log-probabilities are given: `sums` has those of each item's choices.

    The dense model is taken to be certain of every right choice.
    """

    sums: dict[Item, tuple[float, ...]]

    def loglikelihoods(self, items: Sequence[Item]) -> list[tuple[float, ...]]:
        """Return what was given."""
        return [self.sums[item] for item in items]

    def divergences(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return the divergence from certainty: the negative log-probability of the right choice, a token.

        Along the dense model's own answers it is as far.
        """
        del along
        return [-self.sums[item][item.answer] / len(item.choices[item.answer]) for item in items]

    def overlaps(self, items: Sequence[Item], along: Along = "both") -> list[float]:
        """Return what a plan has in common with certainty: the probability of the right choice, a token."""
        return [math.exp(-divergence) for divergence in self.divergences(items, along)]


@contract
class ObjectiveContract:
    """What every objective must hold to."""

    component: ClassVar[type[Objective]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Objective, self.options)

    def test_a_value_depends_on_its_item_alone(self) -> None:
        """Early stopping and the journal of a run rely on it."""
        made, staged = self.component(**self.options), self._staged()
        items = tuple(staged.sums)
        together = list(made.item_values(staged, items))
        alone = [value for item in items for value in made.item_values(staged, [item])]
        assert len(together) == len(items)
        assert all(map(math.isfinite, together))
        assert together == pytest.approx(alone, rel=1e-9)
        assert list(made.item_values(staged, items[::-1])) == pytest.approx(together[::-1], rel=1e-9)

    def test_points_go_from_0_to_100_and_rise_with_the_right_choice(self) -> None:
        """The right choice gets likelier from hopeless to certain."""
        made = self.component(**self.options)
        score = []
        for right in (-60.0, -20.0, -8.0, -4.0, -2.0, -1.0, -0.1):
            staged = self._staged(right)
            values = made.item_values(staged, tuple(staged.sums))
            score.append(made.score(math.fsum(values) / len(values)))
        assert all(0 <= value <= 100 for value in score)
        assert all(before <= after for before, after in pairwise(score))
        assert score[0] < score[-1]

    def test_a_damaged_model_is_not_better(self) -> None:
        """A search must not be led to models that know less.

        The dense model is calibrated: a choice that it gives a probability of a third is the right one a third of the time. One
        damaged model has lost confidence, as with logits of a third; the other answers at random.
        """
        made, (dense, *damaged) = self.component(**self.options), _calibrated_and_damaged()
        items = tuple(dense.sums)
        weights = [made.weight(item) for item in items]
        before = made.item_values(dense, items)
        mean = math.fsum(w * v for w, v in zip(weights, before, strict=True)) / math.fsum(weights)
        step = TOLERANCE * max(1.0, abs(mean))
        rises = made.score(mean + step) >= made.score(mean - step)
        for staged in damaged:
            gains = [new - old for new, old in zip(made.item_values(staged, items), before, strict=True)]
            shares = [weight * (gain if rises else -gain) for weight, gain in zip(weights, gains, strict=True)]
            assert math.fsum(shares) / len(shares) <= 2 * standard_error(shares)

    def test_points_have_a_slope_everywhere(self) -> None:
        """The core scales standard errors by the slope of the score, so it calls `score` slightly below and above a mean."""
        made, staged = self.component(**self.options), self._staged(0.0)
        for value in made.item_values(staged, tuple(staged.sums)):
            assert all(math.isfinite(made.score(value + step)) for step in (-TOLERANCE, 0, TOLERANCE))

    def test_no_item_is_better_than_the_best_item(self) -> None:
        """`best_item` bounds what a candidate can still reach."""
        made = self.component(**self.options)
        for right in (-60.0, -4.0, -0.1, 0.0):
            staged = self._staged(right)
            for value in made.item_values(staged, tuple(staged.sums)):
                assert made.best_item is None or made.score(value) <= made.score(made.best_item)

    def test_every_weight_is_positive(self) -> None:
        """A mean is divided by their sum."""
        made = self.component(**self.options)
        assert all(made.weight(item) > 0 and math.isfinite(made.weight(item)) for item in self._staged().sums)

    def test_a_real_model_has_points_too(self) -> None:
        """On a tiny model with prompts of unlike lengths."""
        made, model = self.component(**self.options), tiny_llama()
        items = self._answered(model)
        assert made.problems(items) == []
        with no_global_randomness(), left_as_it_was(model):
            values = list(made.item_values(StagedModel(PrefixCache(model), Plan.unified(Removal([Drop(3)]))), items))
        assert len(values) == len(items)
        weights = [made.weight(item) for item in items]
        assert 0 <= made.score(math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)) <= 100

    def test_losing_a_silent_block_changes_no_value(self) -> None:
        """A value comes from what the model answers, not from what the plan says."""
        made, model = self.component(**self.options), tiny_llama(silent={SILENT})
        items, prefix_cache = self._answered(model), PrefixCache(model)
        dense, without = (StagedModel(prefix_cache, Plan.unified(Removal(lost))) for lost in ([], [Drop(SILENT)]))
        assert list(made.item_values(without, items)) == list(made.item_values(dense, items))

    def _answered(self, dense: BlockModel) -> list[Item]:
        """Return items of unlike lengths, with the answers of a dense model that the objective wants."""
        length = self.component(**self.options).answer_length
        items = [encode(sample, ByteTokenizer()) for sample in _choices()]
        if not length:
            return items
        made = answers(TwoPhaseModel(dense, Plan()), [item.prompts[0] for item in items], length)
        return [replace(item, dense_answer=tuple(answer)) for item, answer in zip(items, made, strict=True)]

    def _staged(self, right: float | None = None) -> FixedStaged:
        """Return random log-probabilities; `right` is that of every right choice."""
        rng = rng_of(0)
        sums: dict[Item, tuple[float, ...]] = {}
        for sample in _choices():
            item = encode(sample, ByteTokenizer())
            if self.component(**self.options).answer_length:
                item = replace(item, dense_answer=(1, 2, 3))
            drawn = [rng.uniform(-12, -2) for _ in item.choices]
            drawn[item.answer] = drawn[item.answer] if right is None else right
            sums[item] = tuple(drawn)
        return FixedStaged(sums)


def _calibrated_and_damaged() -> list[FixedStaged]:
    """Return a calibrated model, the same with flattened logits, and one that answers at random, over many made-up items."""
    rng = rng_of(1)
    made: list[dict[Item, tuple[float, ...]]] = [{}, {}, {}]
    for number in range(MADE_UP):
        # All choices of an item are as long, so that objectives which count length in, and others, find the same one likeliest.
        length, count = rng.choice((1, 2, 4, 8, 24)), rng.choice((2, 4))
        sums = tuple(sum(rng.uniform(-4.0, -0.1) for _ in range(length)) for _ in range(count))
        (answer,) = rng.choices(range(count), [math.exp(total - max(sums)) for total in sums])
        choices = tuple(tuple(rng.randrange(256) for _ in range(length)) for _ in range(count))
        item = Item(((1, 2, 3),), choices, answer, (4 * length,) * count, f"made up {number}", (4, 5, 6))
        made[0][item] = sums
        made[1][item] = tuple(0.3 * total - 0.7 * length * math.log(256) for total in sums)
        made[2][item] = tuple(sum(rng.uniform(-8.0, -4.0) for _ in range(length)) for _ in range(count))
    return [FixedStaged(sums) for sums in made]


def _choices() -> list[Sample]:
    return [
        Sample("Ice is", (" cold", " hot"), 0, "two"),
        Sample("The opposite of up is", (" left", " down", " far away"), 1, "three"),
        Sample("2 + 2 =", (" 3", " 5", " 22", " 4"), 3, "four"),
    ]
