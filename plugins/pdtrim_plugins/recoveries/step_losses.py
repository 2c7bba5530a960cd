"""What a step of a training makes smaller: the distance of the pair's answers, or of prefill's K/V, from the dense model's.

Shape suffixes: N tokens, D hidden, K numbers of all K/V heads.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from pdtrim_plugins.recoveries.kl_loss import divergence

if TYPE_CHECKING:
    from pdtrim_core.api import Item, PairBatch, RecoveryContext, WalkedLayer


class StepLoss(ABC):
    """A loss over the tokens of some texts; `of_answers` tells whether it is of what the pair answers, in nats a token."""

    of_answers: ClassVar[bool] = False

    @abstractmethod
    def backward(self, trial: RecoveryContext, texts: Sequence[Item], collect: Callable[[], None]) -> tuple[float, int]:
        """Add the gradients of the loss, summed over tokens; return that sum, and how many tokens there were.

        `collect` is called behind each part of the gradients.
        """


@dataclass(frozen=True)
class AnswerLoss(StepLoss):
    """KL(dense || pair), in nats a token, over the tokens that decode reads; see the options of `distill`."""

    of_answers: ClassVar[bool] = True

    temperature: float = 1.0
    stream_weight: float = 0.0
    autocast: bool = False
    recompute: bool = False

    def backward(self, trial: RecoveryContext, texts: Sequence[Item], collect: Callable[[], None]) -> tuple[float, int]:
        """Add the gradients of the loss, batch by batch."""
        batches = trial.batches(texts)
        total = math.fsum(self._backward(trial, batch, collect) for batch in batches)
        return total, sum(batch.tokens for batch in batches)

    def _backward(self, trial: RecoveryContext, batch: PairBatch, collect: Callable[[], None]) -> float:
        model = trial.model
        half = torch.autocast(model.device.type, torch.bfloat16) if self.autocast else nullcontext()
        with half:
            dense_ND = batch.dense()
            pair_ND = batch.pair(recompute=self.recompute)
            total, gradient_ND = divergence(model, dense_ND, pair_ND, self.temperature)
        outputs, gradients = [pair_ND], [gradient_ND]
        if self.stream_weight:
            stream = self.stream_weight * len(pair_ND) * _difference(dense_ND, pair_ND)
            total += float(stream.detach())
            outputs, gradients = [*outputs, stream], [*gradients, torch.ones_like(stream)]
        torch.autograd.backward(outputs, gradients)
        collect()
        return total


class CacheLoss(StepLoss):
    """How far the K/V of the blocks that prefill skips are from the dense model's, at its tokens.

    It is the mean squared difference as a share of the dense K/V's mean square, averaged over K and V of all those blocks. K is
    compared behind its norm and in front of its rotary embedding, which keeps lengths. The first token of a prompt is left out,
    as in every walk.
    """

    def backward(self, trial: RecoveryContext, texts: Sequence[Item], collect: Callable[[], None]) -> tuple[float, int]:
        """Add the gradients of the loss, layer by layer: no layer's K/V depend on another's."""
        shares, tokens = [], 0
        passed = sum(layer.state == "kv-only" for layer in trial.layers("prefill"))
        for layer in trial.walk("prefill", texts=texts):
            if layer.layer.state != "kv-only":
                continue
            found = list(layer.tokens())
            if not found:
                return 0.0, 1  # prompts of which prefill reads the first token alone: nothing is learned in this step
            # Inside a walk nothing is made for gradients; these are copies outside of it.
            given_ND, dense_ND = (torch.cat([states[place] for states in found]).clone() for place in range(2))
            tokens = len(given_ND)
            share = self._off(trial, layer, given_ND, dense_ND) / passed
            torch.autograd.backward([tokens * share])
            collect()
            shares.append(float(share.detach()))
        return tokens * math.fsum(shares), tokens

    def _off(self, trial: RecoveryContext, layer: WalkedLayer, given_ND: Tensor, dense_ND: Tensor) -> Tensor:
        parts = trial.model.layout.kv
        with torch.no_grad():
            wanted = _kv(layer.left, parts, dense_ND)
        made = _kv(layer.module, parts, given_ND)
        return torch.stack([_difference(*pair) for pair in zip(wanted, made, strict=True)]).mean()


def _kv(block: nn.Module, parts: Sequence[str], states_ND: Tensor) -> tuple[Tensor, Tensor]:
    """Return K `[N, K]` and V `[N, K]` that a block makes of hidden states, K behind its norm where it has one."""
    norm, k_proj, v_proj, *norms = (block.get_submodule(part) for part in parts)
    normed_ND = norm(states_ND)
    k_NK, v_NK = k_proj(normed_ND), v_proj(normed_ND)
    for k_norm in norms:
        width = k_norm.get_parameter("weight").shape[-1]
        k_NK = k_norm(k_NK.unflatten(-1, (-1, width))).flatten(1)
    return k_NK, v_NK


def _difference(wanted_ND: Tensor, found_ND: Tensor) -> Tensor:
    """Return the mean squared difference of two sets of numbers, as a share of the wanted ones' mean square."""
    wanted_ND, found_ND = wanted_ND.float(), found_ND.float()
    return (found_ND - wanted_ND).square().mean() / wanted_ND.square().mean().clamp(min=torch.finfo(torch.float32).tiny)
