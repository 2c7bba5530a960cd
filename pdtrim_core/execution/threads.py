"""How many CPU threads to use: on a machine that others use too, fewer can be many times faster."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pdtrim_core.model.block_model import BlockModel

REPEATS = 3
CLEARLY_FASTER = 0.75
"""One thread must take at most this share of the time to be chosen: timings on a busy machine scatter."""


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Use so many threads inside the context (None: torch's own number); the number from before comes back."""
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(count or before)
        yield
    finally:
        torch.set_num_threads(before)


def fitting_threads(model: BlockModel, batch_tokens: int | None) -> int:
    """Return one, or torch's own number of threads: whichever runs a block of this model faster just now."""
    usual = torch.get_num_threads()
    if usual == 1 or model.device.type != "cpu":
        return usual
    ids = torch.zeros((max(1, (batch_tokens or model.fitting_batch) // 32), 32), dtype=torch.long)
    with torch.inference_mode():
        recording = model.record(ids)
        seconds = {}
        for count in (usual, 1):
            with threads(count):
                model.run(0, recording.hidden_BTD, recording.calls)
                started = time.perf_counter()
                for _ in range(REPEATS):
                    model.run(0, recording.hidden_BTD, recording.calls)
                seconds[count] = time.perf_counter() - started
    return 1 if seconds[1] < CLEARLY_FASTER * seconds[usual] else usual
