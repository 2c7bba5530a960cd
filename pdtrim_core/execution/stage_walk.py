"""The layers of one stage over training texts, from shallow to deep, beside the dense model: what closed forms are computed from.

All texts are at one depth at a time. A layer may be given other weights when the walk is at it; the layers behind it then see
what the stage really has there.

Shape suffixes: B batch, T token, D hidden, F channels of an MLP, N tokens of the stage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.batching import Firsts
from pdtrim_core.execution.first_tokens import FirstTokens, first_tokens_in
from pdtrim_core.execution.prefix_cache import ExecutionOptions, Place, PrefixCache, PreparedBatch
from pdtrim_core.execution.stage_modules import module_of, with_weights
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstToken, LayerOf, Plan

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


class WalkedLayer:
    """A layer that a walk is at.

    `gone` are the blocks of the dense model between it and what the stage runs next.
    """

    def __init__(self, walked: Walked, way: _Way, layer: Layer, depth: int) -> None:
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
    way = _Pair(walked) if stage == "decode" and not walked.unified else _Alone(walked, stage)
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


def _tokens_of_batch(walked: Walked, way: _Way, batch: Any, layer: Layer, depth: int) -> LayerTokens:
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


class _Batch:
    """Some texts at one depth: the hidden states of the stage and of the dense model, and which tokens are the stage's."""

    def __init__(self, model: BlockModel, hidden_BTD: Tensor, calls: Sequence[Call], tokens_N: Tensor) -> None:
        self._model = model
        self.hidden_BTD = self.dense_BTD = hidden_BTD
        self.calls = calls
        self.tokens_N = tokens_N
        self.depth = 0
        self._ahead: tuple[int, Tensor] | None = None

    def dense_at(self, depth: int, *, keep: bool = False) -> Tensor:
        """Return the dense model's hidden states in front of a block at or behind this depth; with `keep` for the next call."""
        if self._ahead is not None and self._ahead[0] == depth:
            return self._ahead[1]
        dense_BTD = self.dense_BTD
        for block in range(self.depth, depth):
            dense_BTD = self._model.run(block, dense_BTD, self.calls)
        self._ahead = (depth, dense_BTD) if keep else None
        return dense_BTD

    def go_to(self, depth: int) -> None:
        """Take the dense model's hidden states to a depth."""
        self.dense_BTD, self.depth, self._ahead = self.dense_at(depth), depth, None


class _Way:
    """How the texts go through the layers of a stage."""

    stage: Stage
    batches: list[Any]
    at: Layer | None = None

    def run(self, batch: Any, layer: Layer) -> Tensor:
        """Return the hidden states behind a layer, of the stage's tokens at least."""
        raise NotImplementedError

    def reach(self, layer: Layer) -> None:
        """Go on to a layer."""
        for batch in self.batches:
            batch.go_to(layer.block)

    def leave(self, layer: Layer, depth: int) -> None:
        """Run a layer, with the weights that it has now; `depth` is that of what comes next."""
        raise NotImplementedError


class _Alone(_Way):
    """A stage as a model of its own: prefill on its prompts, or both stages in one on whole texts."""

    def __init__(self, walked: Walked, stage: Stage) -> None:
        self.stage = stage
        self._walked = walked
        texts = [_text(item, walked) for item in walked.items]
        size = walked.batch_tokens or walked.model.fitting_batch
        self.batches = [_recorded(walked.model, group) for group in _grouped([text for text in texts if text], size)]

    def reach(self, layer: Layer) -> None:
        super().reach(layer)
        # What reads whole texts is no prefill: nothing is known of it from a table.
        table = None if self._walked.unified else first_tokens_in(self._walked.modules, self._walked.plan)
        if table is not None:
            with torch.inference_mode():
                for batch in self.batches:
                    batch.begin(table, layer.block)

    def run(self, batch: _Batch, layer: Layer) -> Tensor:
        if not layer.runs:
            return batch.hidden_BTD
        model, module = self._walked.model, self._walked.module(self.stage, layer)
        return model.run(layer.like, batch.hidden_BTD, batch.calls, None if module is model.blocks[layer.block] else module)

    def leave(self, layer: Layer, depth: int) -> None:
        own = layer.state == "run" and self._walked.module(self.stage, layer) is self._walked.model.blocks[layer.block]
        with torch.inference_mode():
            for batch in self.batches:
                same = batch.hidden_BTD is batch.dense_BTD
                if same and own and depth == layer.block + 1:
                    batch.go_to(depth)
                    batch.hidden_BTD = batch.dense_BTD
                else:
                    batch.hidden_BTD = self.run(batch, layer)


class _Pair(_Way):
    """Decode behind prefill, in one pass: the K/V of the prompts are prefill's."""

    stage: Stage = "decode"

    def __init__(self, walked: Walked) -> None:
        self._walked = walked
        options = ExecutionOptions(first_token=walked.first_token, batch_tokens=walked.batch_tokens, budget=0)
        self._cache = PrefixCache(walked.model, options)
        with torch.inference_mode():
            self.batches = [_PairBatch(walked.model, group, prepared) for group, prepared in self._cache.batches(walked.items)]
        self._number = 0

    @property
    def _staged(self) -> StagedModel:
        return StagedModel(self._cache, self._walked.plan, self._walked.modules)

    def reach(self, layer: Layer) -> None:
        staged = self._staged
        while staged.path[self._number].block < layer.block:
            self._step(staged, staged.path[self._number])
        super().reach(layer)

    def run(self, batch: _PairBatch, layer: Layer) -> Tensor:
        del layer
        staged = self._staged
        return staged.decoded(batch.prepared, staged.path[self._number], batch.hidden_BTD)

    def leave(self, layer: Layer, depth: int) -> None:
        del layer, depth
        staged = self._staged
        self._step(staged, staged.path[self._number])

    def _step(self, staged: StagedModel, place: Place) -> None:
        dense = place == Place(place.block, ((place.block, None),), ((place.block, None),))
        with torch.inference_mode():
            for batch in self.batches:
                if dense and batch.hidden_BTD is batch.dense_BTD:
                    batch.go_to(place.block + 1)
                    batch.hidden_BTD = batch.dense_BTD
                else:
                    batch.hidden_BTD = staged.step(batch.prepared, place, batch.hidden_BTD)
        self._number += 1


class _AloneBatch(_Batch):
    def __init__(
        self, model: BlockModel, hidden_BTD: Tensor, calls: Sequence[Call], tokens_N: Tensor, first_ids_B: Tensor
    ) -> None:
        super().__init__(model, hidden_BTD, calls, tokens_N)
        self._first_ids_B = first_ids_B

    def begin(self, table: FirstTokens, block: int) -> None:
        """Put the states of a table in front of a block where it has those of a text's first token."""
        rows, width, _ = self.hidden_BTD.shape
        self.hidden_BTD = table.put(self.hidden_BTD, block, Firsts(self._first_ids_B, torch.arange(rows) * width))


class _PairBatch(_Batch):
    def __init__(self, model: BlockModel, group: Sequence[Item], prepared: PreparedBatch) -> None:
        self.prepared = prepared
        hidden_BTD = prepared.recording.hidden_BTD
        lengths = [len(item.prompt_of(0)) + len(item.choices[0]) - 1 for item in group]
        read = None if prepared.batch.prompts is None else prepared.batch.prompts.places
        super().__init__(model, hidden_BTD, prepared.recording.calls, _places(lengths, hidden_BTD, without=read))


def _text(item: Item, walked: Walked) -> tuple[int, ...]:
    """Return what the stage that runs alone reads of a text."""
    prompt = item.prompt_of(0)
    if walked.unified:
        return prompt + item.choices[0][:-1]
    return prompt[:-1] if walked.first_token == "decode" else prompt


def _grouped(texts: Sequence[tuple[int, ...]], batch_tokens: int) -> Iterator[list[tuple[int, ...]]]:
    """Yield texts of about one length, with so many tokens together at most, unless a single one has more."""
    group: list[tuple[int, ...]] = []
    for text in sorted(texts, key=len):
        if group and (len(group) + 1) * len(text) > batch_tokens:
            yield group
            group = []
        group.append(text)
    if group:
        yield group


def _recorded(model: BlockModel, texts: Sequence[tuple[int, ...]]) -> _AloneBatch:
    ids_BT = torch.zeros(len(texts), max(map(len, texts)), dtype=torch.long)
    for row, text in enumerate(texts):
        ids_BT[row, : len(text)] = torch.tensor(text)
    with torch.inference_mode():
        recording = model.record(ids_BT.to(model.device))
    hidden_BTD = recording.hidden_BTD
    return _AloneBatch(model, hidden_BTD, recording.calls, _places([len(text) for text in texts], hidden_BTD), ids_BT[:, 0])


def _places(lengths: Sequence[int], hidden_BTD: Tensor, without: Tensor | None = None) -> Tensor:
    """Return where tokens are that are neither padding nor first of their text, nor left out, counted through all rows."""
    columns_BT = torch.arange(hidden_BTD.shape[1]).repeat(len(lengths), 1)
    wanted_BT = (columns_BT > 0) & (columns_BT < torch.tensor(lengths)[:, None])
    if without is not None:
        wanted_BT.view(-1)[without.cpu()] = False
    return wanted_BT.view(-1).nonzero()[:, 0].to(hidden_BTD.device)
