"""Hidden states that wait for their next block, of a model whose blocks are read from the disk one after the other.

All texts, under all plans that are measured together, are at one block at a time, so their hidden states may be more than a
device holds, or main memory.
"""

from __future__ import annotations

import os
import tempfile
import weakref
from pathlib import Path

import torch
from torch import Tensor

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.placement import free_memory

SHARE_OF_FREE_MEMORY = 0.5
"""Of what is free when the first of them comes; the rest is for weights, and for what blocks compute with."""
HOST = torch.device("cpu")
ON_DISK = Path("/var/tmp")  # noqa: S108 - files without a name are made in it
"""Where temporary files are on a disk; elsewhere they often are in memory."""


class WaitingStates:
    """Keeps hidden states where there is room: where they were made, in main memory, or in files that have no name."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._room: dict[torch.device, int] = {}
        self._counted: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def put(self, hidden_BTD: Tensor) -> Tensor:
        """Return the same hidden states from where there is room for them.

        Raises `PdtrimError` where there is none on the disk either.
        """
        if hidden_BTD.requires_grad:
            return hidden_BTD
        for place in (self._device, HOST):
            if self._holds(place, hidden_BTD.nbytes):
                found = hidden_BTD.to(place)
                storage = found.untyped_storage()
                if storage not in self._counted:
                    self._counted.add(storage)
                    self._room[place] -= storage.nbytes()
                    # Views of it may outlive a tensor, so its room is free again with its storage.
                    weakref.finalize(storage, self._give_back, place, storage.nbytes())
                return found
        return _in_a_file(hidden_BTD)

    def _holds(self, place: torch.device, size: int) -> bool:
        if place not in self._room:
            self._room[place] = int(free_memory(place) * SHARE_OF_FREE_MEMORY)
        return size <= self._room[place]

    def _give_back(self, place: torch.device, size: int) -> None:
        self._room[place] += size


def _in_a_file(hidden_BTD: Tensor) -> Tensor:
    """Return a copy that the system may write to a disk whenever it needs the memory."""
    folder = _folder()
    try:
        # torch maps it by its name and keeps no file open, of which a process may have a thousand.
        with tempfile.NamedTemporaryFile(dir=folder, prefix="pdtrim-states-") as file:
            # What finds no room later, when it is written to, would end the process.
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), 0, max(1, hidden_BTD.nbytes))
            else:
                file.truncate(hidden_BTD.nbytes)
            found = torch.from_file(file.name, shared=True, size=hidden_BTD.numel(), dtype=hidden_BTD.dtype)
    except OSError as error:
        raise PdtrimError(
            f"hidden states of {hidden_BTD.nbytes:,} bytes find no room in memory, and none in {folder} ({error.strerror}): "
            "make room there, set TMPDIR to a folder that has some, or take fewer calibration.samples"
        ) from error
    return found.view(hidden_BTD.shape).copy_(hidden_BTD)


def _folder() -> Path:
    chosen = os.environ.get("TMPDIR")
    return Path(tempfile.gettempdir()) if chosen or not os.access(ON_DISK, os.W_OK) else ON_DISK
