"""What a distiller is given: the block to train, and batches of what the dense model makes of the training tokens.

Shape suffixes: B batch, T token, D hidden, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from pdtrim_core.data.items import Item
from pdtrim_core.execution.prefix_cache import PrefixCache, PreparedBatch
from pdtrim_core.model.block_calls import Call, run_block
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass, results_of
from pdtrim_core.plan.elements import Merge


@dataclass(frozen=True)
class TeacherBatch:
    """One batch of training tokens: the dense model's hidden states in front of a run of blocks and behind it, `[B, T, D]`.

    Both are in float32, whatever the number format of the model.
    """

    before_BTD: Tensor
    after_BTD: Tensor
    calls: Sequence[Call]


class Student:
    """The block that learns to replace a run. A distiller trains `parameters()` in place.

    While it is trained the block is in float32, whatever the number format of the model: steps of 1e-5 are less than a weight in
    bfloat16 can change by.
    """

    def __init__(self, model: BlockModel, merge: Merge, module: nn.Module) -> None:
        self.model = model
        self.merge = merge
        self.module = module
        self._format: torch.dtype = model.model.get_input_embeddings().weight.dtype

    def __call__(self, batch: TeacherBatch) -> Tensor:
        """Return the student's hidden states `[B, T, D]` on a batch, with the mask and positions of the block it came from.

        They are computed, and returned, in the number format of the student's own weights.
        """
        formats = {parameter.dtype for parameter in self.module.parameters() if parameter.is_floating_point()}
        # A block of several formats is the model's own, which is given what the model gives it.
        dtype = formats.pop() if len(formats) == 1 else self._format
        call = batch.calls[self.merge.keep]
        call = call if dtype == self._format else call.to(dtype)
        with self.model.bringing():
            return run_block(self.module, batch.before_BTD.to(dtype), call.args, call.kwargs, by_keyword=call.by_keyword)

    def parameters(self) -> list[nn.Parameter]:
        """Return what may be trained: everything, but for the input norm, K and V of a merge with frozen K/V."""
        return [parameter for parameter in self.module.parameters() if parameter.requires_grad]

    def logits(self, batch: TeacherBatch, hidden_BTD: Tensor) -> Iterator[Tensor]:
        """Yield the final logits `[N, V]` of hidden states behind the run, some positions at a time; gradients flow.

        The blocks behind the run compute in the number format of the model; the logits are in float32.
        """
        scale = hidden_BTD.shape[:2].numel() if self._format == torch.float16 and hidden_BTD.requires_grad else 1
        hidden_BTD = _with_gradients_times(1 / scale, hidden_BTD).to(self._format)
        for index in range(self.merge.blocks[-1] + 1, self.model.block_count):
            hidden_BTD = self.model.run(index, hidden_BTD, batch.calls)
        for logits_NV in self.model.logits(hidden_BTD.flatten(0, 1)):
            yield _with_gradients_times(scale, logits_NV)


class TeacherBatches:
    """The training tokens as batches that can be gone through again, once an epoch."""

    def __init__(self, prefix_cache: PrefixCache, items: Sequence[Item], merge: Merge) -> None:
        self._model = prefix_cache.model
        with torch.no_grad():
            passes = [self._pass(prepared, merge) for _, prepared in prefix_cache.batches(items)]
            self._batches = list(results_of(passes, together=self._model.streams))

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[TeacherBatch]:
        # A batch at a time: all of them in float32 would take twice the memory.
        for batch in self._batches:
            before_BTD, after_BTD = batch.before_BTD, batch.after_BTD
            if self._model.streams:  # they may have waited elsewhere
                before_BTD, after_BTD = before_BTD.to(self._model.device), after_BTD.to(self._model.device)
            yield replace(batch, before_BTD=before_BTD.float(), after_BTD=after_BTD.float())

    def _pass(self, prepared: PreparedBatch, merge: Merge) -> Pass[TeacherBatch]:
        before = yield from prepared.dense_pass(merge.blocks[0])
        after = before
        for index in merge.blocks:
            yield index
            after = self._model.run(index, after, prepared.recording.calls)
        return TeacherBatch(before, after, prepared.recording.calls)


def _with_gradients_times(factor: float, tensor: Tensor) -> Tensor:
    """Return a tensor whose gradients are scaled on their way back.

    Between the logits and the student, float16 cannot hold the gradients of a mean over a whole batch: they become 0.
    """
    if factor != 1:
        tensor = tensor.view_as(tensor)
        tensor.register_hook(lambda gradient: gradient * factor)  # type: ignore[no-untyped-call]
    return tensor
