"""KL(dense || pair) with its gradient, a few positions at a time: their logits over a whole vocabulary are what takes memory.

Shape suffixes: N positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import kl_div, log_softmax

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

NUMBERS = 2**23
"""Logits of one model that are held at once, in numbers; with their gradients it is about six times as many."""


class Divergence(NamedTuple):
    """The sum over positions of KL(dense || pair), in nats, and its gradient `[N, D]` at the pair's hidden states."""

    total: float
    gradient_ND: Tensor


def divergence(
    model: BlockModel, dense_ND: Tensor, pair_ND: Tensor, temperature: float = 1.0, numbers: int = NUMBERS
) -> Divergence:
    """Return how far the pair is from the dense model, given the hidden states of both behind the last block.

    Logits are divided by a temperature, and the divergence is multiplied by its square, so that gradients keep their size. The
    gradient goes through the final norm and the head, which must not be trained, once; it does not reach further than `pair_ND`.
    """
    step = max(1, numbers // model.vocabulary)
    total, gradients = 0.0, []
    for start in range(0, len(pair_ND), step):
        part_ND = pair_ND[start : start + step].detach().requires_grad_()
        with torch.no_grad():
            wanted_NV = _logprobs(model, dense_ND[start : start + step], temperature)
        with torch.enable_grad():
            found_NV = _logprobs(model, part_ND, temperature)
            here = kl_div(found_NV, wanted_NV, reduction="sum", log_target=True) * temperature**2
        gradients.append(torch.autograd.grad(here, part_ND)[0])
        total += float(here.detach())
    return Divergence(total, torch.cat(gradients))


def _logprobs(model: BlockModel, hidden_ND: Tensor, temperature: float) -> Tensor:
    return torch.cat([log_softmax(logits_NV / temperature, dim=-1) for logits_NV in model.logits(hidden_ND)])
