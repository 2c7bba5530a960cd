"""How training texts go through the layers of a stage: prefill alone on its prompts, or decode behind prefill in one pass.

Shape suffixes: B batch, T token, D hidden, N tokens of the stage.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from pdtrim_core.data.items import Item
from pdtrim_core.execution.batching import Firsts
from pdtrim_core.execution.first_tokens import FirstTokens, first_tokens_in
from pdtrim_core.execution.prefix_cache import ExecutionOptions, Place, PrefixCache, PreparedBatch
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass, result_of, results_of
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer


class Batch:
    """Some texts at one depth: the hidden states of the stage and of the dense model, and which tokens are the stage's."""

    def __init__(self, model: BlockModel, hidden_BTD: Tensor, calls: Sequence[Call], tokens_N: Tensor) -> None:
        self._model = model
        self.hidden_BTD = self.dense_BTD = hidden_BTD
        self.calls = calls
        self.tokens_N = tokens_N
        self.depth = 0
        self._ahead: tuple[int, Tensor] | None = None

    def dense_at(self, depth: int) -> Tensor:
        """Return the dense model's hidden states in front of a block at or behind this depth, and keep them for the next call."""
        return result_of(self.dense_pass(depth))

    def dense_pass(self, depth: int) -> Pass[Tensor]:
        """Return the pass that makes what `dense_at` returns."""
        if self._ahead is None or self._ahead[0] != depth:
            dense_BTD = self.dense_BTD
            for block in range(self.depth, depth):
                yield block
                dense_BTD = self._model.run(block, dense_BTD, self.calls)
            self._ahead = depth, dense_BTD
        return self._ahead[1]

    def go_to(self, depth: int) -> Pass[None]:
        """Return the pass that takes the dense model's hidden states to a depth."""
        self.dense_BTD = yield from self.dense_pass(depth)
        self.depth, self._ahead = depth, None


class Way(ABC):
    """How the texts go through the layers of a stage."""

    stage: Stage
    batches: list[Any]
    at: Layer | None = None

    @abstractmethod
    def run(self, batch: Any, layer: Layer) -> Tensor:
        """Return the hidden states behind a layer, of the stage's tokens at least."""

    def reach(self, layer: Layer) -> None:
        """Go on to a layer."""
        self._carry(batch.go_to(layer.block) for batch in self.batches)

    def look_ahead(self, depth: int) -> None:
        """Take the dense model's hidden states to a depth of the tokens that are going to be looked at, where that saves reading.

        Elsewhere each batch's are taken there when its tokens are.
        """
        if self._model.streams:
            self._carry(batch.dense_pass(depth) for batch in self.batches)

    def _carry(self, passes: Iterable[Pass[Any]]) -> None:
        with torch.inference_mode():
            for _ in results_of(passes, together=self._model.streams):
                pass

    @property
    @abstractmethod
    def _model(self) -> BlockModel:
        """The dense model."""

    @abstractmethod
    def leave(self, layer: Layer, depth: int) -> None:
        """Run a layer, with the weights that it has now; `depth` is that of what comes next."""


class Alone(Way):
    """A stage as a model of its own: prefill on its prompts, or both stages in one on whole texts."""

    def __init__(self, walked: Walked, stage: Stage, batches: Sequence[Batch] | None = None) -> None:
        self.stage = stage
        self._walked = walked
        self.batches = list(recorded(walked) if batches is None else batches)

    @property
    def _model(self) -> BlockModel:
        return self._walked.model

    def reach(self, layer: Layer) -> None:
        """Go on to a layer, with the first tokens that a table has."""
        super().reach(layer)
        # What reads whole texts is no prefill: nothing is known of it from a table.
        table = None if self._walked.unified else first_tokens_in(self._walked.modules, self._walked.plan)
        if table is not None:
            with torch.inference_mode():
                for batch in self.batches:
                    batch.begin(table, layer.block)

    def run(self, batch: Batch, layer: Layer) -> Tensor:
        """Return the hidden states behind a layer, of all tokens."""
        if not layer.runs:
            return batch.hidden_BTD
        model, module = self._walked.model, self._walked.module(self.stage, layer)
        return model.run(layer.like, batch.hidden_BTD, batch.calls, None if module is model.blocks[layer.block] else module)

    def leave(self, layer: Layer, depth: int) -> None:
        """Run the layer; where it is the dense model's on its hidden states, what that gave is taken."""
        own = layer.state == "run" and self._walked.module(self.stage, layer) is self._model.blocks[layer.block]
        dense = own and depth == layer.block + 1
        self._carry(self._leaving(batch, layer, depth if dense else None) for batch in self.batches)

    def _leaving(self, batch: Batch, layer: Layer, dense_to: int | None) -> Pass[None]:
        if dense_to is not None and batch.hidden_BTD is batch.dense_BTD:
            yield from batch.go_to(dense_to)
            batch.hidden_BTD = batch.dense_BTD
        else:
            yield layer.like
            batch.hidden_BTD = self.run(batch, layer)


class Pair(Way):
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
    def _model(self) -> BlockModel:
        return self._walked.model

    @property
    def _staged(self) -> StagedModel:
        return StagedModel(self._cache, self._walked.plan, self._walked.modules)

    def reach(self, layer: Layer) -> None:
        """Run the places in front of a layer at which decode has none."""
        staged = self._staged
        while staged.path[self._number].block < layer.block:
            self._step(staged, staged.path[self._number])
        super().reach(layer)

    def run(self, batch: _PairBatch, layer: Layer) -> Tensor:
        """Return what decode makes at this place, which counts at its own tokens."""
        del layer
        staged = self._staged
        return staged.decoded(batch.prepared, staged.path[self._number], batch.hidden_BTD)

    def leave(self, layer: Layer, depth: int) -> None:
        """Run the layer; where it is the dense model's on its hidden states, what that gave is taken."""
        del layer, depth
        staged = self._staged
        self._step(staged, staged.path[self._number])

    def _step(self, staged: StagedModel, place: Place) -> None:
        dense = place == Place(place.block, ((place.block, None),), ((place.block, None),))
        self._carry(self._stepping(staged, batch, place, dense=dense) for batch in self.batches)
        self._number += 1

    def _stepping(self, staged: StagedModel, batch: _PairBatch, place: Place, *, dense: bool) -> Pass[None]:
        if dense and batch.hidden_BTD is batch.dense_BTD:
            yield from batch.go_to(place.block + 1)
            batch.hidden_BTD = batch.dense_BTD
        else:
            batch.hidden_BTD = yield from staged.step_pass(batch.prepared, place, batch.hidden_BTD)


class _AloneBatch(Batch):
    def __init__(
        self, model: BlockModel, hidden_BTD: Tensor, calls: Sequence[Call], tokens_N: Tensor, first_ids_B: Tensor
    ) -> None:
        super().__init__(model, hidden_BTD, calls, tokens_N)
        self._first_ids_B = first_ids_B

    def begin(self, table: FirstTokens, block: int) -> None:
        """Put the states of a table in front of a block where it has those of a text's first token."""
        rows, width, _ = self.hidden_BTD.shape
        self.hidden_BTD = table.put(self.hidden_BTD, block, Firsts(self._first_ids_B, torch.arange(rows) * width))


class _PairBatch(Batch):
    def __init__(self, model: BlockModel, group: Sequence[Item], prepared: PreparedBatch) -> None:
        self.prepared = prepared
        hidden_BTD = prepared.recording.hidden_BTD
        lengths = [len(item.prompt_of(0)) + len(item.choices[0]) - 1 for item in group]
        read = None if prepared.batch.prompts is None else prepared.batch.prompts.places
        super().__init__(model, hidden_BTD, prepared.recording.calls, _places(lengths, hidden_BTD, without=read))


def recorded(walked: Walked) -> Iterator[Batch]:
    """Yield what a stage that runs alone reads of the texts, in batches in front of block 0."""
    texts = [_text(item, walked) for item in walked.items]
    for group in _grouped([text for text in texts if text], walked.batch_tokens or walked.model.fitting_batch):
        yield _recorded(walked.model, group)


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
