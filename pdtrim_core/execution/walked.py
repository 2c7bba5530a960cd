"""What is walked: a plan with its modules, which recovery adds to, and the texts that it learns from."""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.execution.stage_modules import module_of, with_weights
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstToken, LayerOf, Plan


@dataclass(frozen=True)
class Walked:
    """What is walked: a plan with its modules, which `change` adds to, and texts, each a prompt and one continuation.

    Where both stages lose the same they are one model, and what changes changes in both.
    """

    model: BlockModel
    plan: Plan
    modules: MutableMapping[Any, nn.Module]
    items: Sequence[Item]
    first_token: FirstToken = "decode"
    batch_tokens: int | None = None

    @property
    def unified(self) -> bool:
        """Whether both stages are one model."""
        return self.plan.prefill == self.plan.decode

    def layers(self, stage: Stage) -> tuple[Layer, ...]:
        """Return what a stage runs, and which K/V it computes."""
        return self.plan.layers(stage, self.model.block_count)

    def module(self, stage: Stage, layer: Layer) -> nn.Module:
        """Return what a layer of a stage runs now."""
        return module_of(self.model, self.plan, stage, layer, self.modules)

    def change(self, stage: Stage, layer: Layer, weights: Mapping[str, Tensor]) -> None:
        """Give a layer other weights, by their names in the block; its module from now on shares all others with the one before.

        Raises `PdtrimError` for a weight that it does not have, or that has another shape.
        """
        changed = with_weights(self.module(stage, layer), weights)
        stages: tuple[Stage, ...] = ("prefill", "decode") if self.unified else (stage,)
        for one in stages:
            self.modules[LayerOf.at(self.plan, one, layer)] = changed
