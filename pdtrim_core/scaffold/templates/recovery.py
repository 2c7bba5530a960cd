"""A recovery: gives layers of a pruned pair other weights, so that it answers more like the dense model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import LayerRecovery, Recovery, RecoveryFacts, hookimpl

if TYPE_CHECKING:
    # They load torch, which listings do without.
    from torch import Tensor

    from pdtrim_core.api import Layer, Stage, WalkedLayer


class Example(LayerRecovery):
    """Makes what the block in front of a gap adds larger or smaller, by the one number that fits best."""

    name = "example"

    ridge: float = Field(0.01, gt=0, description="pull of that number towards 1, which changes nothing")

    def problems(self, facts: RecoveryFacts) -> list[str]:
        """Return why it can do nothing for a model; it is asked before the weights are read."""
        return [] if facts.layout.mlp else [f"{facts.model} ({facts.family}): its MLP has no projection of its own"]

    def wants(self, stage: Stage, layer: Layer, gone: range) -> bool:
        """Want decode's layers in front of a gap; `gone` are the blocks that the stage lacks behind a layer."""
        return stage == "decode" and layer.runs and bool(gone)

    def weights(self, layer: WalkedLayer) -> dict[str, Tensor]:
        """Return the projection out of the MLP, times one number; layers behind it see what it makes then."""
        if not layer.adds_what_it_makes():
            return {}
        name, product, square = layer.layout.mlp[-1], 1e-9, 1e-9
        for tokens in layer.tokens():
            # What the block should have added for the next one to find what the dense model has there.
            wanted_ND = tokens.made_ND + (tokens.wanted_ND - tokens.after_ND)
            product += float((tokens.made_ND * wanted_ND).sum())
            square += float(tokens.made_ND.square().sum())
        factor = (product + self.ridge * square) / (square + self.ridge * square)
        parameters = layer.module.get_submodule(name).named_parameters()
        return {f"{name}.{own}": factor * weight.detach() for own, weight in parameters}


@hookimpl
def pdtrim_recoveries() -> Iterable[type[Recovery]]:
    """Yield the recoveries of this package."""
    yield Example
