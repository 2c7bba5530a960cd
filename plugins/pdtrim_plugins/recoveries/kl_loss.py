"""KL(dense || pair) with its gradient, a few positions at a time: their logits over a whole vocabulary are what takes memory.

Shape suffixes: N positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

NUMBERS = 2**23
"""Logits of one model that are held at once, in numbers; with what is made of them it is about five times as many."""


class Divergence(NamedTuple):
    """The sum over positions of KL(dense || pair), in nats, and its gradient `[N, D]` at the pair's hidden states."""

    total: float
    gradient_ND: Tensor


def divergence(
    model: BlockModel, dense_ND: Tensor, pair_ND: Tensor, temperature: float = 1.0, numbers: int = NUMBERS
) -> Divergence:
    """Return how far the pair is from the dense model, given the hidden states of both behind the last block.

    Logits are divided by a temperature, and the divergence is multiplied by its square, so that gradients keep their size. The
    gradient goes through the head and the final norm, which must not be trained, and no further than `pair_ND`: whoever wants
    that of weights goes on from there, once for all positions.
    """
    step = max(1, numbers // model.vocabulary)
    total, gradients = 0.0, []
    for start in range(0, len(pair_ND), step):
        part_ND = pair_ND[start : start + step].detach().requires_grad_()
        with torch.enable_grad():
            logits_NV = torch.cat(list(model.logits(part_ND)))
        with torch.no_grad():
            dense_NV = torch.cat(list(model.logits(dense_ND[start : start + step])))
            here, gradient_NV = _at_logits(dense_NV, logits_NV, temperature)
        gradients.append(torch.autograd.grad(logits_NV, part_ND, gradient_NV)[0])
        total += here
    return Divergence(total, torch.cat(gradients))


def _at_logits(dense_NV: Tensor, pair_NV: Tensor, temperature: float) -> tuple[float, Tensor]:
    """Return the sum of the divergences between two sets of logits, and its gradient at the second: p_pair - p_dense.

    Few passes over the vocabulary, most of them in place, take half the time of autograd's.
    """
    dense_NV, found_NV = (log_softmax(logits_NV / temperature, dim=-1) for logits_NV in (dense_NV, pair_NV.detach()))
    wanted_NV = dense_NV.exp()
    divergence_N = dense_NV.sub_(found_NV).mul_(wanted_NV).sum(dim=-1)
    gradient_NV = found_NV.exp_().sub_(wanted_NV).mul_(temperature)
    return float(divergence_N.double().sum()) * temperature**2, gradient_NV
