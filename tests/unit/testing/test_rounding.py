"""The measure by which two computations of the same numbers are held against each other."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.testing.rounding import ROUNDING, units_apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_next_number_is_one_unit_away(dtype: torch.dtype) -> None:
    expected = torch.tensor([1.5, -0.25], dtype=dtype)
    upwards = torch.nextafter(expected, torch.full_like(expected, torch.inf))
    assert units_apart(expected, expected) == 0
    assert units_apart(upwards, expected) == 1


def test_small_numbers_are_measured_by_the_largest() -> None:
    expected = torch.tensor([1024.0, 1e-4])
    unit = 2**-13
    assert units_apart(expected + torch.tensor([0, 3 * unit]), expected) == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_never_near(wrong: float) -> None:
    assert units_apart(torch.tensor([1.0, wrong]), torch.tensor([1.0, 2.0])) == torch.inf


def test_another_shape_or_number_format_is_no_match() -> None:
    with pytest.raises(AssertionError, match=r"torch.Size\(\[1, 2\]\) of torch.float32 were found"):
        units_apart(torch.zeros(1, 2), torch.zeros(2))
    with pytest.raises(AssertionError):
        units_apart(torch.zeros(2, dtype=torch.float64), torch.zeros(2))


def test_a_sum_in_another_order_is_within_rounding_and_a_wrong_weight_is_not() -> None:
    weights = torch.randn(64, 48, generator=torch.Generator().manual_seed(0))
    order = torch.randperm(48, generator=torch.Generator().manual_seed(1))
    states = torch.randn(9, 48, generator=torch.Generator().manual_seed(2))
    product = states @ weights.T
    assert units_apart(states[:, order] @ weights[:, order].T, product) <= ROUNDING
    weights[3, 7] += 0.01
    assert units_apart(states @ weights.T, product) > 100 * ROUNDING
