"""The loss of a training: the same in pieces as in one, and its gradient that of autograd."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import kl_div

from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_plugins.recoveries.kl_loss import divergence

POSITIONS = 11


def states(seed: int) -> torch.Tensor:
    return torch.randn(POSITIONS, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.numeric
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_divergence_with_the_gradient_of_autograd(family: str, temperature: float) -> None:
    model, dense_ND, pair_ND = tiny_model(family), states(0), states(1).requires_grad_()
    wanted, found = (torch.cat(list(model.logits(states_ND))) / temperature for states_ND in (dense_ND, pair_ND))
    expected = temperature**2 * kl_div(found.log_softmax(-1), wanted.log_softmax(-1), reduction="sum", log_target=True)
    expected.backward()  # type: ignore[no-untyped-call]
    total, gradient_ND = divergence(model, dense_ND, pair_ND, temperature)
    assert total == pytest.approx(float(expected.detach()), rel=1e-5)
    assert gradient_ND == pytest.approx(pair_ND.grad, abs=1e-5 * float(gradient_ND.abs().max()))


@pytest.mark.numeric
@pytest.mark.parametrize("positions", [1, 2, 3, POSITIONS, 100])
def test_in_pieces_it_is_the_same(positions: int) -> None:
    model = tiny_llama()
    whole = divergence(model, states(0), states(1))
    pieces = divergence(model, states(0), states(1), numbers=positions * model.vocabulary)
    assert pieces.total == pytest.approx(whole.total, rel=1e-6)
    assert pieces.gradient_ND == pytest.approx(whole.gradient_ND, abs=1e-6 * float(whole.gradient_ND.abs().max()))


def test_no_more_positions_than_said_have_their_logits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    model, seen = tiny_llama(), []
    logits = model.logits

    def noted(hidden_ND: torch.Tensor) -> object:
        seen.append(len(hidden_ND))
        return logits(hidden_ND)

    monkeypatch.setattr(model, "logits", noted)
    divergence(model, states(0), states(1), numbers=3 * model.vocabulary)
    assert seen == [3, 3, 3, 3, 3, 3, 2, 2]


def test_the_same_states_diverge_by_nothing_and_have_no_gradient() -> None:
    total, gradient_ND = divergence(tiny_llama(), states(0), states(0))
    assert abs(total) < 1e-5
    assert float(gradient_ND.abs().max()) < 1e-5
