"""Ridge regression from sums: what torch's own solver finds, and what is told where nothing can be found."""

from __future__ import annotations

import pytest
import torch

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.recoveries.least_squares import RidgeSums

pytestmark = pytest.mark.numeric

GIVEN = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
MAP = torch.randn(8, 3, generator=torch.Generator().manual_seed(1))


def sums_of(*batches: tuple[torch.Tensor, torch.Tensor]) -> RidgeSums:
    sums = RidgeSums()
    for given, wanted in batches:
        sums.add(given, wanted)
    return sums


def test_batches_add_up_to_the_map_behind_them() -> None:
    sums = sums_of(*((GIVEN[start : start + 30], GIVEN[start : start + 30] @ MAP) for start in range(0, 200, 30)))
    assert sums.tokens == 200
    assert torch.allclose(sums.solved(1e-12, "it"), MAP.double(), atol=1e-5)


@pytest.mark.parametrize("ridge", [1e-3, 1.0, 1e6])
def test_a_ridge_pulls_towards_giving_nothing(ridge: float) -> None:
    found = sums_of((GIVEN, GIVEN @ MAP)).solved(ridge, "it")
    pull = (ridge * GIVEN.double().square().sum() / 8).sqrt()
    stacked = torch.cat([GIVEN.double(), pull * torch.eye(8, dtype=torch.float64)])
    wanted = torch.cat([(GIVEN @ MAP).double(), torch.zeros(8, 3, dtype=torch.float64)])
    assert torch.allclose(found, torch.linalg.lstsq(stacked, wanted).solution, atol=1e-6)


@pytest.mark.parametrize("tokens", [1, 7])
def test_fewer_tokens_than_numbers_are_too_few_unless_the_ridge_decides(tokens: int) -> None:
    given = GIVEN[:tokens]
    with pytest.raises(
        PdtrimError, match=rf"^it: {tokens} tokens do not determine a map of 8 x 8 numbers: .* 32 tokens, or a larger"
    ):
        sums_of((given, given @ MAP)).solved(1e-30, "it")
    assert sums_of((given, given @ MAP)).solved(1e-2, "it").isfinite().all()


def test_a_number_that_is_a_sum_of_others_is_noticed_with_any_number_of_tokens() -> None:
    given = torch.cat([GIVEN, GIVEN[:, :1] + GIVEN[:, 1:2]], dim=1)
    with pytest.raises(PdtrimError, match="200 tokens do not determine a map of 9 x 9 numbers"):
        sums_of((given.double(), GIVEN @ MAP)).solved(1e-30, "it")


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", ["given", "wanted"])
def test_hidden_states_that_are_no_numbers_are_told_as_such(broken: float, place: str) -> None:
    given, wanted = GIVEN.clone(), GIVEN @ MAP
    (given if place == "given" else wanted)[3, 1] = broken
    with pytest.raises(PdtrimError, match=r"^it: hidden states of the texts are NaN or infinite"):
        sums_of((given, wanted)).solved(1e-2, "it")


def test_where_nothing_is_given_nothing_changes() -> None:
    found = sums_of((torch.zeros(20, 8), torch.ones(20, 8))).solved(1e-2, "it")
    assert torch.equal(found, torch.zeros(8, 8, dtype=torch.float64))
