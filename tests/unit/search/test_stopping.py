"""Bounds of a mean that hold while the sample grows."""

from __future__ import annotations

import math
from random import Random

import pytest

from pdtrim_core.search.stopping import FEWEST, interval

ERROR = 0.05


def sample(rng: Random, count: int) -> tuple[list[float], list[float]]:
    """Return skewed differences with the weights of items of many lengths."""
    values = [rng.lognormvariate(0, 1) * rng.choice((1, -1)) for _ in range(count)]
    return values, [float(rng.randint(1, 30)) for _ in range(count)]


def mean_of(values: list[float], weights: list[float]) -> float:
    return math.fsum(v * w for v, w in zip(values, weights, strict=True)) / math.fsum(weights)


@pytest.mark.parametrize("step", [1, 16])
def test_the_mean_of_all_is_outside_the_bounds_at_any_look_less_often_than_allowed(step: int) -> None:
    rng, missed, trials = Random(0), 0, 400
    for _ in range(trials):
        values, weights = sample(rng, 128)
        mean = mean_of(values, weights)
        bounds = (interval(values[:n], weights[:n], ERROR, planned=128) for n in range(step, 129, step))
        missed += any(not low <= mean <= high for low, high in bounds)
    assert missed <= ERROR * trials


def test_one_look_with_the_bounds_of_a_plain_test_would_be_wrong_too_often() -> None:
    """What the bounds are wider for: a test at the same level at every look is wrong several times as often."""
    rng, missed, trials = Random(0), 0, 400
    for _ in range(trials):
        values, _ = sample(rng, 128)
        mean = math.fsum(values) / len(values)
        for n in range(FEWEST, 129):
            part = values[:n]
            middle = math.fsum(part) / n
            deviation = math.sqrt(math.fsum((v - middle) ** 2 for v in part) / (n - 1))
            if abs(middle - mean) > 1.96 * deviation / math.sqrt(n):
                missed += 1
                break
    assert missed > 2 * ERROR * trials


def test_the_bounds_lie_around_the_weighted_mean_and_close_in() -> None:
    values, weights = sample(Random(1), 256)
    widths = []
    for count in (16, 64, 256):
        low, high = interval(values[:count], weights[:count], ERROR, planned=256)
        assert (low + high) / 2 == pytest.approx(mean_of(values[:count], weights[:count]))
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)


def test_a_smaller_error_is_wider() -> None:
    values, weights = sample(Random(2), 64)
    (low, high), (lower, higher) = (interval(values, weights, error, planned=64) for error in (0.05, 0.001))
    assert lower < low < high < higher


@pytest.mark.parametrize("value", [0.0, 2.0, -1.0])
def test_of_values_that_are_all_alike_nothing_is_said(value: float) -> None:
    """Two plans that answer the first items alike, right or wrong, may still differ on the rest."""
    assert interval([value] * 16, [1.0] * 16, ERROR, planned=64) == (-math.inf, math.inf)


def test_of_few_values_nothing_is_said() -> None:
    assert interval([1.0] * (FEWEST - 1), [1.0] * (FEWEST - 1), ERROR, planned=64) == (-math.inf, math.inf)
    assert interval([], [], ERROR, planned=64) == (-math.inf, math.inf)
