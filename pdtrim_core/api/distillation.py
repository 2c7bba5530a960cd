"""What a distiller is given: the block to train, and batches of what the dense model makes of the training tokens.

Shape suffixes: B batch, T token, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.execution.prefix_cache import PrefixCache, PreparedBatch
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Merge


@dataclass(frozen=True)
class TeacherBatch:
    """One batch of training tokens: the dense model's hidden states in front of a run of blocks and behind it, `[B, T, D]`."""

    before_BTD: Tensor
    after_BTD: Tensor
    calls: Sequence[Call]


class Student:
    """The block that learns to replace a run. A distiller trains `parameters()` in place."""

    def __init__(self, model: BlockModel, merge: Merge, module: nn.Module) -> None:
        self.model = model
        self.merge = merge
        self.module = module

    def __call__(self, batch: TeacherBatch) -> Tensor:
        """Return the student's hidden states `[B, T, D]` on a batch, with the mask and positions of the block it came from."""
        return self.model.run(self.merge.keep, batch.before_BTD, batch.calls, self.module)

    def parameters(self) -> list[nn.Parameter]:
        """Return what may be trained: everything, but for the input norm, K and V of a merge with frozen K/V."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def logits(self, batch: TeacherBatch, hidden_BTD: Tensor) -> Iterator[Tensor]:
        """Yield the final logits `[N, V]` of hidden states behind the run, some positions at a time; gradients flow."""
        for index in range(self.merge.blocks[-1] + 1, self.model.block_count):
            hidden_BTD = self.model.run(index, hidden_BTD, batch.calls)
        yield from self.model.logits(hidden_BTD.flatten(0, 1))


class TeacherBatches:
    """The training tokens as batches that can be gone through again, once an epoch."""

    def __init__(self, prefix_cache: PrefixCache, items: Sequence[Item], merge: Merge) -> None:
        self._model = prefix_cache.model
        with torch.no_grad():
            self._batches = [self._batch(prepared, merge) for _, prepared in prefix_cache.batches(items)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TeacherBatch]:
        return iter(self._batches)

    def _batch(self, prepared: PreparedBatch, merge: Merge) -> TeacherBatch:
        before = prepared.dense_at(merge.blocks[0])
        after = before
        for index in merge.blocks:
            after = self._model.run(index, after, prepared.recording.calls)
        return TeacherBatch(before, after, prepared.recording.calls)
