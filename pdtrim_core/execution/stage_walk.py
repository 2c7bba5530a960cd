"""The layers of one stage over training texts, from shallow to deep, beside the dense model: what closed forms are computed from.

All texts are at one depth at a time. A layer may be given other weights when the walk is at it; the layers behind it then see
what the stage really has there.

Shape suffixes: B batch, T token, D hidden, F channels of an MLP, N tokens of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.stage_modules import removed_module_of
from pdtrim_core.execution.walk_ways import Alone, Pair, Way
from pdtrim_core.execution.walked import Walked
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer

UNITS_OFF = 16
"""Roundings, each of a unit in the last place, by which what is added may be off: it goes through two or three sums."""


class LayerTokens(NamedTuple):
    """Some tokens of a stage at a layer, `[N, D]` each; never the first token of a text, whose state is unlike all others.

    `before_ND` and `after_ND` are the hidden states that the stage has in front of the layer and behind it, `dense_before_ND`
    those of the dense model in front of the layer's first block, and `wanted_ND` those of the dense model in front of what the
    stage runs next. `made_ND` is what the last projection of the layer's MLP gives, and `channels_NF` what it is given; both
    are empty, `[N, 0]`, where the layer does not run, or where its family has no such projection.
    """

    before_ND: Tensor
    dense_before_ND: Tensor
    made_ND: Tensor
    after_ND: Tensor
    wanted_ND: Tensor
    channels_NF: Tensor


class WalkedLayer:
    """A layer that a walk is at.

    `gone` are the blocks of the dense model between it and what the stage runs next.
    """

    def __init__(self, walked: Walked, way: Way, layer: Layer, depth: int) -> None:
        self._walked = walked
        self._way = way
        self._depth = depth
        self.stage = way.stage
        self.layer = layer
        self.gone = range(layer.blocks[-1] + 1, depth)
        # A shrunk block is one and the same module only as long as someone holds it.
        self._held = walked.module(way.stage, layer)

    @property
    def module(self) -> nn.Module:
        """What the layer runs; it must not be changed in place."""
        return self._walked.module(self.stage, self.layer)

    @property
    def left(self) -> nn.Module:
        """What the plan left of the layer, before any recovery: what it makes of dense hidden states is what is wanted."""
        return removed_module_of(self._walked.model, self.layer, self._walked.modules)

    def tokens(self) -> Iterator[LayerTokens]:
        """Yield the tokens of the stage, a batch at a time; they may be gone through again while the walk is at the layer."""
        self._check_here()
        for batch in self._way.batches:
            if len(batch.tokens_N):
                with torch.inference_mode():
                    found = _tokens_of_batch(self._walked, self._way, batch, self.layer, self._depth)
                yield found

    def adds_what_it_makes(self) -> bool:
        """Tell whether what the last projection of its MLP gives is added to the hidden states as it is.

        Only then does a linear map of the one fold into the projection. A norm or a factor between them says no, and so does a
        layer that does not run, or whose family has no such projection. It is tried out on some of the tokens.
        """
        self._check_here()
        names = self._walked.model.layout.mlp[-1:]
        batch = next((batch for batch in self._way.batches if len(batch.tokens_N)), None)
        if not self.layer.runs or not names or batch is None:
            return False
        with torch.inference_mode():
            return _adds(self.module.get_submodule(names[0]), lambda: self._way.run(batch, self.layer))

    def _check_here(self) -> None:
        """Raise `PdtrimError` where the hidden states are those of another depth by now."""
        if self._way.at is not self.layer:
            raise PdtrimError("a walk has left this layer: look at its tokens before it goes on to the next one")

    def change(self, weights: Mapping[str, Tensor]) -> None:
        """Give the layer other weights; see `Walked.change`."""
        self._walked.change(self.stage, self.layer, weights)


def walk(walked: Walked, stage: Stage) -> Iterator[WalkedLayer]:
    """Yield the layers of a stage, from shallow to deep.

    Prefill's tokens are those of the prompts that it reads, decode's all others, where the K/V of the prompts are prefill's.
    Where both stages are one model, its tokens are all.
    """
    way = Pair(walked) if stage == "decode" and not walked.unified else Alone(walked, stage)
    layers = walked.layers(stage)
    for number, layer in enumerate(layers):
        depth = _next_depth(layers, number, walked.model.block_count)
        way.reach(layer)
        way.at = layer
        yield WalkedLayer(walked, way, layer, depth)
        way.at = None
        way.leave(layer, depth)


def _next_depth(layers: Sequence[Layer], number: int, block_count: int) -> int:
    """Return the block in front of which the stage's hidden states should be the dense model's, behind a layer.

    It is that of the next layer that runs; where none does, that of the next one, which computes K/V.
    """
    behind = layers[number + 1 :]
    return next((one.block for one in behind if one.runs), behind[0].block if behind else block_count)


def _tokens_of_batch(walked: Walked, way: Way, batch: Any, layer: Layer, depth: int) -> LayerTokens:
    module = walked.module(way.stage, layer) if layer.runs else None
    with _seen_at(module, walked.model.layout.mlp[-1:]) as seen:
        after_BTD = way.run(batch, layer)
    none_BT0 = after_BTD.new_empty(*after_BTD.shape[:2], 0)
    channels_BTF, made_BTD = seen or (none_BT0, none_BT0)
    given = (batch.hidden_BTD, batch.dense_BTD, made_BTD, after_BTD, batch.dense_at(depth, keep=True), channels_BTF)
    return LayerTokens(*(states.flatten(0, -2)[batch.tokens_N] for states in given))


@contextmanager
def _seen_at(module: nn.Module | None, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Give a list to which what a projection of a module is given, and what it gives, are added."""
    seen: list[Tensor] = []
    if module is None or not names:
        yield seen
        return

    def note(_module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        seen.extend((given[0], output))

    hook = module.get_submodule(names[0]).register_forward_hook(note)
    try:
        yield seen
    finally:
        hook.remove()


def _adds(projection: nn.Module, run: Callable[[], Tensor]) -> bool:
    """Tell whether more of what a projection gives is found again, and nothing else, in the hidden states that `run` returns."""
    more: list[Tensor] = []
    before_BTD = run()

    def add(_module: nn.Module, _given: Any, output: Tensor) -> Tensor:
        # As long as the hidden states, beside which something short would be lost in rounding.
        more.append(output * (before_BTD.norm() / output.norm().clamp(min=torch.finfo(output.dtype).tiny)))
        return output + more[-1]

    hook = projection.register_forward_hook(add)
    try:
        found_BTD = run() - before_BTD
    finally:
        hook.remove()
    (added_BTD,) = (tensor.reshape(found_BTD.shape) for tensor in more)
    off = float((found_BTD - added_BTD).float().norm() / added_BTD.float().norm().clamp(min=torch.finfo(torch.float32).tiny))
    return off <= UNITS_OFF * torch.finfo(found_BTD.dtype).eps
