"""The dense model's streams, kept: every candidate equals the dense model below its first element and begins there.

Shape suffixes: B batch, T token, D hidden, N positions where the logits count.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from pdtrim_core.batches import Batch, lay_out, shape_of
from pdtrim_core.calibration import Item, pack
from pdtrim_core.model import BlockModel, Recording
from pdtrim_core.plan import FirstToken

SHARE_OF_FREE_MEMORY = 0.25
PACKING_TOLERANCE = 1e-3
"""Largest difference of a choice's log-probability (nats) at which packed rows count as the same; mixed-up masks or
positions give whole nats, rounding gives 1e-5."""


class Trunk:
    """Batches of items with what the dense model computes on them, shared by all plans that are measured.

    Block inputs are kept at evenly spaced depths, as many as `budget` bytes hold (None: a quarter of the free memory).
    Reuse changes no number.
    """

    def __init__(
        self,
        model: BlockModel,
        *,
        first_token: FirstToken = "decode",
        batch_tokens: int = 512,
        budget: int | None = None,
        packed: bool = False,
    ) -> None:
        self.model = model
        self.first_token: FirstToken = first_token
        self.batch_tokens = batch_tokens
        self._packed = packed
        self._budget = free_memory(model.device) * SHARE_OF_FREE_MEMORY if budget is None else budget
        self._spent = 0
        self._prepared: dict[tuple[Item, ...], PreparedBatch] = {}

    def groups(self, items: Sequence[Item]) -> list[tuple[Item, ...]]:
        """Return the items in groups that run as one batch each; a group's own grouping is itself."""
        return pack(items, self.batch_tokens, self._shape)

    def batches(self, items: Sequence[Item]) -> list[tuple[tuple[Item, ...], PreparedBatch]]:
        """Return the items in groups with their prepared batches; a group that was seen before comes back as it was."""
        return [(group, self._prepare(group)) for group in self.groups(items)]

    def _prepare(self, group: tuple[Item, ...]) -> PreparedBatch:
        if group not in self._prepared:
            batch = lay_out(group, first_token=self.first_token, packs=self._packs, device=self.model.device)
            self._prepared[group] = PreparedBatch(self.model, batch, self)
        return self._prepared[group]

    def _shape(self, item: Item) -> tuple[int, int]:
        return shape_of(item, self._packs)

    def _packs(self, item: Item) -> bool:
        # Our mask has no sliding window in it, so a row must be shorter than one.
        window = getattr(self.model.config, "sliding_window", None)
        length = len(item.prompts[0]) + sum(len(choice) for choice in item.choices)
        return self._packed and (window is None or length < window)

    def halve_batches(self) -> None:
        """Forget everything kept and lay items out in batches half as large from now on."""
        self._prepared.clear()
        self._spent = 0
        self.batch_tokens //= 2

    def grant(self, wanted: int, depths: int) -> int:
        """Return at how many of `depths` depths a batch may keep its stream of `wanted` bytes each, and book it."""
        share = max(0, int(self._budget) - self._spent)
        granted = min(depths, share // max(1, wanted))
        self._spent += granted * wanted
        return granted


class PreparedBatch:
    """One batch: its recording, and the dense streams kept at some depths."""

    def __init__(self, model: BlockModel, batch: Batch, trunk: Trunk) -> None:
        self.batch = batch
        self._model = model
        self.recording = model.record(batch.ids_BT, batch.mask_BTT, batch.positions_BT)
        self._prompt_recording: Recording | None = None
        self._dense_ND: Tensor | None = None
        self._kept: dict[int, Tensor] = {0: self.recording.hidden_BTD}
        hidden = self.recording.hidden_BTD
        granted = trunk.grant(hidden.numel() * hidden.element_size(), model.block_count)
        self._stride = math.ceil(model.block_count / granted) if granted else 0

    @property
    def prompt_recording(self) -> Recording:
        """The recording of the columns that prefill reads alone, made when first wanted."""
        if self._prompt_recording is None:
            batch, width = self.batch, self.batch.prompt_width
            mask = None if batch.mask_BTT is None else batch.mask_BTT[:, :, :width, :width]
            positions = None if batch.positions_BT is None else batch.positions_BT[:, :width]
            self._prompt_recording = self._model.record(batch.ids_BT[:, :width], mask, positions)
        return self._prompt_recording

    @property
    def dense_stream(self) -> Tensor:
        """The dense model's stream `[N, D]` behind the last block where logits count, made when first wanted and kept."""
        if self._dense_ND is None:
            first, hidden_BTD = self.nearest(self._model.block_count)
            for index in range(first, self._model.block_count):
                self.keep(index, hidden_BTD)
                hidden_BTD = self._model.run(index, hidden_BTD, self.recording.calls)
            self._dense_ND = hidden_BTD[self.batch.at_row, self.batch.at_column]
        return self._dense_ND

    def nearest(self, depth: int) -> tuple[int, Tensor]:
        """Return the deepest kept stream at or above a depth, with the index of the block it enters."""
        index = max(kept for kept in self._kept if kept <= depth)
        return index, self._kept[index]

    def keep(self, index: int, hidden_BTD: Tensor) -> None:
        """Keep the dense input of a block, if this is a depth that the budget holds."""
        if self._stride and index % self._stride == 0:
            self._kept.setdefault(index, hidden_BTD)


def free_memory(device: torch.device) -> int:
    """Return the free bytes where a device keeps its tensors."""
    if device.type == "cpu":
        import psutil  # noqa: PLC0415 - comes with accelerate; wanted only for the default budget

        return int(psutil.virtual_memory().available)
    free, _ = torch.get_device_module(device).mem_get_info(device)
    return int(free)
