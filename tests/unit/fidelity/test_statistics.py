"""Standard errors and tests of changes, against what simulation and tables give."""

from __future__ import annotations

import math
from random import Random

import pytest

from pdtrim_core.fidelity.statistics import accepted, mcnemar, ratio


def test_a_ratio_is_that_of_the_sums() -> None:
    found = ratio([1.0, 4.0, 1.0], [1.0, 2.0, 3.0], higher_is_better=True)
    assert (found.value, found.higher_is_better) == (1.0, True)
    assert ratio([2.0], [4.0], higher_is_better=False).error is None


def test_the_error_of_equal_wholes_is_that_of_a_mean() -> None:
    parts = [1.0, 2.0, 4.0, 9.0]
    mean = sum(parts) / 4
    spread = math.sqrt(sum((part - mean) ** 2 for part in parts) / 3)
    assert ratio(parts, [1.0] * 4, higher_is_better=True).error == pytest.approx(spread / 2)


def test_the_error_is_as_large_as_ratios_of_other_draws_differ() -> None:
    rng = Random(0)

    def drawn() -> tuple[list[float], list[float]]:
        wholes = [float(rng.randint(1, 64)) for _ in range(60)]
        return [whole * rng.gauss(1.0, 0.5) + rng.gauss(0, 3) for whole in wholes], wholes

    found = [ratio(*drawn(), higher_is_better=True) for _ in range(400)]
    mean = sum(one.value for one in found) / 400
    spread = math.sqrt(sum((one.value - mean) ** 2 for one in found) / 399)
    assert sum(one.error or 0 for one in found) / 400 == pytest.approx(spread, rel=0.1)


@pytest.mark.parametrize(
    ("worse", "better", "p"),
    [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (0, 5, 0.0625), (10, 2, 0.03857421875), (7, 7, 1.0), (30, 10, 0.002221)],
)
def test_the_p_of_mcnemar_is_that_of_a_fair_coin(worse: int, better: int, p: float) -> None:
    assert mcnemar(worse, better) == pytest.approx(p, rel=1e-3)


def test_a_draft_is_accepted_up_to_its_first_token_that_is_not() -> None:
    assert accepted([0.5, 0.5, 0.5, 0.5], 4) == [0.5 + 0.25 + 0.125 + 0.0625]
    assert accepted([1.0] * 6, 4) == [4.0, 4.0, 4.0]
    assert accepted([0.0, 1.0, 1.0], 2) == [0.0, 2.0]
    assert accepted([1.0] * 3, 4) == []


def test_the_expected_tokens_of_a_draft_are_those_of_a_simulation() -> None:
    rng, chances = Random(1), [0.9, 0.5, 0.8, 0.7]

    def draft() -> int:
        return next((number for number, chance in enumerate(chances) if rng.random() >= chance), 4)

    assert sum(draft() for _ in range(20_000)) / 20_000 == pytest.approx(accepted(chances, 4)[0], rel=0.02)
