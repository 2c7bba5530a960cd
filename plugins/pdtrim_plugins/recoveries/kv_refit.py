"""The K/V of blocks that prefill skips, fitted anew to the hidden states that prefill has there.

Shape suffixes: N tokens, D hidden, K numbers of all K/V heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import LayerRecovery, RecoveryFacts
from pdtrim_plugins.recoveries.least_squares import RidgeSums

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import Layer, Stage, WalkedLayer


class KvRefit(LayerRecovery):
    """Fits the K and V projections of blocks that prefill skips, in closed form, to the K/V of the dense model.

    Where prefill computes only the K/V of a block, it does so from hidden states that lack what the blocks in front would have
    added. Ridge regression over prompt tokens finds the projections that give the dense K/V from them nevertheless: K in front of
    its norm and its rotary embedding, both behind their biases. With hidden states as the dense model has them nothing changes.
    """

    name = "kv-refit"

    ridge: float = Field(1e-2, gt=0, description="pull towards the old projections, as a share of the mean square of the input")

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why no K/V of this family can be fitted."""
        if not facts.layout.kv:
            return [f"{facts.model} ({facts.family}): it computes K and V together with Q, so prefill cannot have them alone"]
        return []

    def stages(self) -> tuple[Stage, ...]:
        """Return prefill, which alone skips blocks."""
        return ("prefill",)

    def wants(self, stage: Stage, layer: Layer, gone: range) -> bool:
        """Want the layers that compute K/V alone, all at the depth at which prefill has them."""
        del stage, gone
        return layer.state == "kv-only"

    def weights(self, layer: WalkedLayer) -> dict[str, Tensor]:
        """Return the projections that give the dense K/V from what prefill has in front of them."""
        import torch  # noqa: PLC0415 - listings must not import torch

        norm, *names = layer.layout.kv[:3]
        # What is wanted is made by what the plan left, whatever an earlier recovery made of the layer.
        left, now, sums = layer.left, layer.module, RidgeSums()
        projections = {name: now.get_submodule(name) for name in names}
        for tokens in layer.tokens():
            given_ND = now.get_submodule(norm)(tokens.before_ND)
            dense_ND = left.get_submodule(norm)(tokens.dense_before_ND)
            missing = [left.get_submodule(name)(dense_ND) - now.get_submodule(name)(given_ND) for name in names]
            sums.add(given_ND, torch.cat(missing, dim=1))
        weights = {f"{name}.weight": projection.get_parameter("weight") for name, projection in projections.items()}
        more_DE = sums.solved(self.ridge, f"K/V of block {layer.layer.block}")
        more = torch.split(more_DE.T, [len(weight_KD) for weight_KD in weights.values()])
        return {
            name: (weight_KD.double() + more_KD).to(weight_KD.dtype)
            for (name, weight_KD), more_KD in zip(weights.items(), more, strict=True)
        }
