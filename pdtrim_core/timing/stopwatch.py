"""How long things take and how much memory they use, on a processor or on an accelerator."""

from __future__ import annotations

import ctypes
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import torch

WARM_UPS = 2
Prepared = AbstractContextManager[Callable[[], object]]
"""A context that gives what is to be timed; entering and leaving it is not timed."""


def timed(run: Callable[[], object], device: torch.device) -> float:
    """Return the seconds that a call takes, its work on an accelerator included."""
    if device.type == "cpu":
        started = time.perf_counter()
        run()
        return time.perf_counter() - started
    begin, end = (torch.Event(device=device, enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1000


def in_turn(runs: Mapping[str, Callable[[], Prepared]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each run, one number a repeat; all run once before any runs again.

    Whatever else the machine does then hits all of them. Who begins rotates. Runs before the first that counts warm up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    names = list(runs)
    for number in range(-WARM_UPS if device.type != "cpu" else -1, repeats):
        first = number % len(names)
        for name in (*names[first:], *names[:first]):
            with runs[name]() as run:
                taken = timed(run, device)
            if number >= 0:
                seconds[name].append(taken)
    return seconds


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return lower quartile, median and upper quartile; of one value that value three times."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def peak_beside(run: Callable[[], object], device: torch.device) -> int | None:
    """Return the most bytes that a call had in use beyond what was in use before; None where the system does not tell.

    On a processor it is the process' resident memory, on systems that can forget its earlier peak (Linux).
    """
    if device.type != "cpu":
        memory = torch.get_device_module(device)
        memory.synchronize()
        memory.reset_peak_memory_stats(device)
        before = memory.memory_allocated(device)
        run()
        memory.synchronize()
        return int(memory.max_memory_allocated(device) - before)
    try:
        _return_freed()
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _resident("VmRSS")
        run()
        return max(0, _resident("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def _return_freed() -> None:
    """Return freed memory to the system, else memory that is used again would not show."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _resident(what: str) -> int:
    """Return a line of this process' status, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(what)).split()[1])
