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
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.several_devices import device_of
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer, gone_behind

UNITS_OFF = 16
"""Roundings, each of a unit in the last place, by which what is added may be off: it goes through two or three sums."""


Wants = Callable[[Stage, Layer, range], bool]
"""Whether a layer of a stage is wanted, by the blocks that are gone between it and what the stage runs next."""


def all_wanted(stage: Stage, layer: Layer, gone: range) -> bool:
    """Want every layer."""
    del stage, layer, gone
    return True


def say_nothing(text: str) -> None:
    """Say nothing to the user."""
    del text


def reach_nothing(share: float) -> None:
    """Tell nobody how far the work has come."""
    del share


class LayerTokens(NamedTuple):
    """Some tokens of a stage at a layer, `[N, D]` each; never the first token of a text, whose state is unlike all others.

    `before_ND` and `after_ND` are the hidden states that the stage has in front of the layer and behind it, `dense_before_ND`
    those of the dense model in front of the layer's first block, and `wanted_ND` those of the dense model in front of what the
    stage runs next. `made_ND` is what the last projection of the layer's MLP gives, and `channels_NF` what it is given; both
    are empty, `[N, 0]`, where the layer does not run, or has no such projection.
    """

    before_ND: Tensor
    dense_before_ND: Tensor
    made_ND: Tensor
    after_ND: Tensor
    wanted_ND: Tensor
    channels_NF: Tensor


class WalkedLayer:
    """A layer that a walk is at.

    `gone` are the blocks of the dense model between it and what the stage runs next; `note` says something to the user.
    """

    def __init__(self, walked: Walked, way: Way, layer: Layer, gone: range, note: Callable[[str], None]) -> None:
        self._walked = walked
        self._way = way
        self.stage = way.stage
        self.layer = layer
        self.gone = gone
        self.note = note
        # A shrunk block is one and the same module only as long as someone holds it.
        self._held = walked.module(way.stage, layer)

    @property
    def layout(self) -> BlockLayout:
        """Where the model's family has the parts of a block."""
        return self._walked.model.layout

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
        self._way.look_ahead(self.gone.stop)
        for batch in self._way.batches:
            if len(batch.tokens_N):
                with torch.inference_mode():
                    found = _tokens_of_batch(self._walked, self._way, batch, self.layer, self.gone.stop)
                yield found

    def adds_what_it_makes(self) -> bool:
        """Tell whether what the last projection of its MLP gives is added to the hidden states as it is.

        Only then does a linear map of the one fold into the projection. A norm or a factor between them says no, and so does a
        layer that does not run, or has no such projection. It is tried out on some of the tokens.
        """
        self._check_here()
        names = _last_projection(self._walked, self.layer)
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


def walk(
    walked: Walked,
    stage: Stage,
    wants: Wants = all_wanted,
    *,
    note: Callable[[str], None] = say_nothing,
    reached: Callable[[float], None] = reach_nothing,
) -> Iterator[WalkedLayer]:
    """Yield the layers of a stage that are wanted, from shallow to deep, and stop behind the last of them.

    Prefill's tokens are those of the prompts that it reads, decode's all others, where the K/V of the prompts are prefill's.
    Where both stages are one model, its tokens are all. `reached` takes the share of the way behind each layer.
    """
    layers = walked.layers(stage)
    gaps = [gone_behind(layers, number, walked.model.block_count) for number in range(len(layers))]
    wanted = [number for number, layer in enumerate(layers) if wants(stage, layer, gaps[number])]
    if not wanted:
        return
    way = Pair(walked) if stage == "decode" and not walked.unified else Alone(walked, stage)
    end = wanted[-1] + 1
    for number, layer in enumerate(layers[:end]):
        way.reach(layer)
        if number in wanted:
            way.at = layer
            yield WalkedLayer(walked, way, layer, gaps[number], note)
            way.at = None
        if number + 1 < end:
            way.leave(layer, gaps[number].stop)
        reached((number + 1) / end)


def _tokens_of_batch(walked: Walked, way: Way, batch: Any, layer: Layer, depth: int) -> LayerTokens:
    module = walked.module(way.stage, layer) if layer.runs else None
    with _seen_at(module, _last_projection(walked, layer)) as seen:
        after_BTD = way.run(batch, layer)
    none_BT0 = after_BTD.new_empty(*after_BTD.shape[:2], 0)
    channels_BTF, made_BTD = seen or (none_BT0, none_BT0)
    given = (batch.hidden_BTD, batch.dense_BTD, made_BTD, after_BTD, batch.dense_at(depth), channels_BTF)
    # All are where the layer's weights are, with which they are combined.
    device = device_of(walked.module(way.stage, layer))
    return LayerTokens(*(states.flatten(0, -2)[batch.tokens_N.to(states.device)].to(device) for states in given))


def _last_projection(walked: Walked, layer: Layer) -> Sequence[str]:
    """Return the name of the last projection of a layer's MLP, if it has one."""
    return () if layer.lost == "mlp" else walked.model.layout.mlp[-1:]


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
        factor = before_BTD.norm().to(output.device) / output.norm().clamp(min=torch.finfo(output.dtype).tiny)
        more.append(output * factor)
        return output + more[-1]

    hook = projection.register_forward_hook(add)
    try:
        found_BTD = run().to(before_BTD.device) - before_BTD
    finally:
        hook.remove()
    (added_BTD,) = (tensor.reshape(found_BTD.shape).to(found_BTD.device) for tensor in more)
    off = float((found_BTD - added_BTD).float().norm() / added_BTD.float().norm().clamp(min=torch.finfo(torch.float32).tiny))
    return off <= UNITS_OFF * torch.finfo(found_BTD.dtype).eps
