"""The dense model's hidden states in front of every block, from which is estimated what a recovery would make of many plans.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pdtrim_core.data.items import Item
from pdtrim_core.execution.stage_walk import WalkedLayer, say_nothing
from pdtrim_core.execution.walk_ways import Alone, Batch, recorded
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import Plan


class DensePlace(NamedTuple):
    """A layer of a stage, the blocks that are gone behind it, and the depth at which the stage's hidden states are taken to be.

    `depth` is the block in front of which the dense model has them.
    """

    layer: Layer
    gone: range
    depth: int


class DenseStates:
    """The dense model's hidden states on texts, of prompts and of what follows them; each depth is computed when it is asked for.

    All of them together are one number for each token, hidden number and depth.
    """

    def __init__(self, model: BlockModel, texts: Sequence[Item], batch_tokens: int | None = None) -> None:
        self.model = model
        # The empty plan's stages are one model, which reads whole texts.
        self._batches = list(recorded(Walked(model, Plan(), {}, texts, batch_tokens=batch_tokens)))
        self._states: list[list[Tensor]] = [[batch.hidden_BTD for batch in self._batches]]

    def layer(self, walked: Walked, stage: Stage, place: DensePlace) -> WalkedLayer:
        """Return a layer of a stage as a walk would come to it if the stage's hidden states were the dense model's."""
        at_depths = self._up_to(max(place.gone.stop, place.layer.block, place.depth))
        batches = [
            _DenseBatch(batch, place, states, self.model) for batch, *states in zip(self._batches, *at_depths, strict=True)
        ]
        way = Alone(walked, stage, batches)
        way.at = place.layer
        return WalkedLayer(walked, way, place.layer, place.gone, say_nothing)

    def _up_to(self, depth: int) -> list[list[Tensor]]:
        with torch.inference_mode():
            for block in range(len(self._states) - 1, depth):
                batches = zip(self._batches, self._states[block], strict=True)
                self._states.append([self.model.run(block, hidden_BTD, batch.calls) for batch, hidden_BTD in batches])
        return self._states


class _DenseBatch(Batch):
    """Some texts at a place, with the dense model's hidden states at all depths."""

    def __init__(self, batch: Batch, place: DensePlace, states: Sequence[Tensor], model: BlockModel) -> None:
        super().__init__(model, states[place.depth], batch.calls, batch.tokens_N)
        self.dense_BTD = states[place.layer.block]
        self._states = states

    def dense_pass(self, depth: int) -> Pass[Tensor]:
        """Return the pass that makes the dense model's hidden states in front of a block: they are there."""
        yield from ()
        return self._states[depth]
