"""Distributions over the vocabulary, of the dense model and of a plan, and what is made of two of them.

On a processor a few positions are taken at a time, which stay in its cache.

Shape suffixes: N positions, P a few of them, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from pdtrim_core.model.block_model import BlockModel

NORMALISED_AT_ONCE = 2
"""Positions, each with logits over the whole vocabulary, that a processor's cache holds beside each other."""
COMPARED_AT_ONCE = 4
"""Positions whose two distributions a processor's cache holds beside each other."""
DRAWN_AT_ONCE = 64
"""Positions whose sums of probabilities are there at a time, in float64."""


def logprobs(model: BlockModel, hidden_ND: Tensor) -> Tensor:
    """Return the log-probabilities `[N, V]` of all tokens behind a few positions, in float32."""
    (logits_NV,) = model.logits(hidden_ND)
    return logits_NV.sub_(normaliser(logits_NV)[:, None])


def normaliser(logits_NV: Tensor) -> Tensor:
    """Return the logarithm `[N]` of the sum of exponentials over the vocabulary, in float32.

    On a processor it takes a few positions at a time, in one buffer that stays in the cache: the steps and the results of
    `torch.logsumexp`, in about half the time.
    """
    if logits_NV.device.type != "cpu":
        return torch.logsumexp(logits_NV.float(), dim=-1)
    normaliser_N = torch.empty(len(logits_NV))
    scratch_NV = torch.empty(NORMALISED_AT_ONCE, logits_NV.shape[1])
    for start in range(0, len(logits_NV), NORMALISED_AT_ONCE):
        part_NV = logits_NV[start : start + NORMALISED_AT_ONCE]
        here_NV = scratch_NV[: len(part_NV)].copy_(part_NV)
        top_N1 = here_NV.amax(dim=-1, keepdim=True)
        normaliser_N[start : start + len(part_NV)] = here_NV.sub_(top_N1).exp_().sum(dim=-1).log_().add_(top_N1[:, 0])
    return normaliser_N


def drawn(logits_NV: Tensor, generator: torch.Generator) -> Tensor:
    """Return a token `[N, 1]` drawn from each distribution, given as logits or log-probabilities.

    On a processor it takes one random number a position and looks for it in the sums of probabilities, since
    `torch.multinomial` takes one for each token of the vocabulary, which is fifteen times as slow. The generator is of the
    logits' device. From what is no distribution (NaN) the last token is drawn.
    """
    if logits_NV.device.type != "cpu":
        return torch.multinomial(logits_NV.float().softmax(dim=-1), 1, generator=generator)
    found = []
    for logits_PV in torch.split(logits_NV, DRAWN_AT_ONCE):
        sums_PV = logits_PV.float().softmax(dim=-1).cumsum(dim=-1, dtype=torch.float64)
        # Never 0, which would find a token that cannot be, in front of the first that can.
        at_P1 = 1 - torch.rand(len(sums_PV), 1, dtype=torch.float64, generator=generator)
        found.append(torch.searchsorted(sums_PV, at_P1 * sums_PV[:, -1:]).clamp_(max=logits_NV.shape[1] - 1))
    return torch.cat(found)


def likeliest(logits_NV: Tensor, at: Tensor, targets: Tensor) -> Tensor:
    """Tell for each target whether `argmax` over the vocabulary, at its position, is that token."""
    if logits_NV.device.type != "cpu":
        # How many are close is known on the device alone.
        return logits_NV.argmax(dim=-1)[at] == targets
    # A maximum is found many times faster than its index, and most targets are below it.
    first = logits_NV[at, targets] == logits_NV.amax(dim=-1)[at]
    close = first.nonzero()[:, 0]
    first[close] = logits_NV[at[close]].argmax(dim=-1) == targets[close]
    return first


def divergence(dense_NV: Tensor, plan_NV: Tensor) -> Tensor:
    """Return KL(dense || plan) in nats from log-probabilities, `[N]`; rounding does not take it below 0."""
    return torch.cat([_divergence(dense_PV, plan_PV, dense_PV.exp()) for dense_PV, plan_PV in _few(dense_NV, plan_NV)])


def overlap(dense_NV: Tensor, plan_NV: Tensor) -> Tensor:
    """Return the sum over the vocabulary of the smaller of two probabilities, 0 to 1, from log-probabilities, `[N]`."""
    return torch.cat([_overlap(dense_PV.exp(), plan_PV.exp()) for dense_PV, plan_PV in _few(dense_NV, plan_NV)])


def distances(dense_NV: Tensor, plan_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Return both `divergence` and `overlap`."""
    divergences, overlaps = [], []
    for dense_PV, plan_PV in _few(dense_NV, plan_NV):
        shares_PV = dense_PV.exp()
        divergences.append(_divergence(dense_PV, plan_PV, shares_PV))
        overlaps.append(_overlap(shares_PV, plan_PV.exp()))
    return torch.cat(divergences), torch.cat(overlaps)


def _few(dense_NV: Tensor, plan_NV: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    size = COMPARED_AT_ONCE if dense_NV.device.type == "cpu" else max(1, len(dense_NV))
    return zip(torch.split(dense_NV, size), torch.split(plan_NV, size), strict=True)


def _divergence(dense_PV: Tensor, plan_PV: Tensor, shares_PV: Tensor) -> Tensor:
    return (dense_PV - plan_PV).mul_(shares_PV).sum(dim=-1).clamp_(min=0)


def _overlap(dense_PV: Tensor, plan_PV: Tensor) -> Tensor:
    """Return the overlap of probabilities; the second tensor is overwritten.

    Taken as what the first has above the second, it is 1 to the last bit where they are the same.
    """
    return (1 - torch.sub(dense_PV, plan_PV, out=plan_PV).clamp_(min=0).sum(dim=-1)).clamp_(min=0)
