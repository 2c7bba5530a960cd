"""What is said of a pruned model that seems better than the dense one, and where nothing is."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from pdtrim_core.data.readings import Reading, Score
from pdtrim_core.pipeline.beyond_dense import remark

DENSE = (0.0, 1.0) * 8


def score_of(values: Sequence[float]) -> Score:
    mean = sum(values) / len(values)
    return Score(Reading(100 * mean, mean, tuple(values), slope=100.0))


def said_of(found: Sequence[float], dense: Sequence[float] = DENSE) -> str | None:
    return remark("unified", score_of(found), score_of(dense), items="held-out items", objective="margin")


def test_a_gain_beyond_two_standard_errors_is_named_with_what_to_do() -> None:
    """Eight of sixteen wrong answers became right, and none wrong: 50 points, with an error of 100 sqrt(0.25 / 15)."""
    assert said_of([1.0] * 16) == (
        "unified beats the dense model by 50.00 points on the held-out items (standard error 12.91): pruning teaches a model "
        "nothing, so either 'margin' takes damage for gain here, or what was found is luck; say objective = \"kl\", or take more "
        "items"
    )


@pytest.mark.parametrize(
    "found",
    [
        DENSE,  # the same plan
        tuple(value - 0.1 for value in DENSE),  # worse without any doubt
        (1.0, *DENSE[1:]),  # one more is right, which is one standard error
        tuple(1 - value for value in DENSE),  # as many right, but others
        tuple(value + 1e-6 for value in DENSE),  # rounding
    ],
)
def test_nothing_is_said_of_ties_losses_luck_and_rounding(found: Sequence[float]) -> None:
    assert said_of(found) is None


def test_a_few_items_tell_nothing() -> None:
    assert said_of([1.0] * 7, [0.0] * 7) is None
    assert said_of([1.0] * 8, [0.0] * 8) is not None


def test_it_is_paired_over_items() -> None:
    """A small gain on every item stands out among items that differ much more."""
    wide = tuple(number / 16 for number in range(16))
    assert said_of([value + 0.001 * (1 + number % 2) for number, value in enumerate(wide)], wide) is not None
