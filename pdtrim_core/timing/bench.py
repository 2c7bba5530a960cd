"""A latency benchmark from beginning to end: what is measured is kept at once, so that an interrupted one goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.threads import fitting_threads, threads
from pdtrim_core.host.sources import engine
from pdtrim_core.results.outcome import machine, versions
from pdtrim_core.timing.latency import Grid, LatencyBench, Setting
from pdtrim_core.timing.results import Latencies, Timing, read_latencies, write_latencies
from pdtrim_core.timing.subjects import Subjects


def measure(
    subjects: Subjects,
    grid: Grid,
    path: Path | None,
    *,
    thread_count: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Latencies:
    """Time all models in all settings; write the file, if there is to be one, whole at the end.

    Until then the file with `.part` behind its name has what was measured; a benchmark of the same things goes on with it.
    Without a number of threads it is one or torch's own, whichever is faster now: on a busy machine threads wait for each other.
    """
    with threads(thread_count or fitting_threads(subjects.all[0].model, None)):
        return _measure(subjects, grid, path, say)


def _measure(subjects: Subjects, grid: Grid, path: Path | None, say: Callable[[str], None]) -> Latencies:
    started = time.perf_counter()
    bench = LatencyBench(subjects.all, grid)
    found = _begun(subjects, bench)
    part = None if path is None else path.with_name(f"{path.name}.part")
    before = _before(part, found)
    if part is not None and not before:
        # A place that cannot be written to shall say so before minutes are spent.
        write_latencies(part, found)
    for number, setting in enumerate(bench.settings, start=1):
        timings = before.get(setting)
        if timings is None:
            say(f"[{number}/{len(bench.settings)}] {_named(setting)}")
            timings = bench.measure(setting)
        found = replace(found, timings=(*found.timings, *timings))
        if part is not None:
            write_latencies(part, found)
    say("memory")
    seconds = time.perf_counter() - started
    found = replace(found, footprints=tuple(bench.footprints()), notes=tuple(bench.notes), seconds=round(seconds, 1))
    if path is not None and part is not None:
        write_latencies(path, found)
        part.unlink(missing_ok=True)
    return found


def _begun(subjects: Subjects, bench: LatencyBench) -> Latencies:
    """Return a result that has everything but what is measured."""
    dense = subjects.all[0].model
    weight = next(dense.model.parameters())
    return Latencies(
        model=dense.name,
        block_count=dense.block_count,
        plan=subjects.plan,
        first_token=subjects.first_token,
        random_weights=subjects.random_weights,
        dtype=str(weight.dtype).removeprefix("torch."),
        device=device_name(bench.device),
        machine=machine(),
        threads=torch.get_num_threads(),
        versions={**versions(), **engine()},
        settings={
            "forward": bench.grid.forward,
            "prompt_lengths": list(bench.grid.prompt_lengths),
            "batches": list(bench.grid.batches),
            "contexts": list(bench.grid.contexts),
            "repeats": bench.grid.repeats,
        },
    )


def device_name(device: torch.device) -> str:
    """Return an accelerator's name as its maker gives it; for a processor only its kind."""
    if device.type == "cpu":
        return device.type
    module = torch.get_device_module(device)
    return str(module.get_device_name(device)) if hasattr(module, "get_device_name") else str(device)


def _before(part: Path | None, now: Latencies) -> dict[Setting, list[Timing]]:
    """Return what an interrupted benchmark of the same things measured, by setting."""
    found: dict[Setting, list[Timing]] = {}
    if part is None or not part.is_file():
        return found
    try:
        before = read_latencies(part)
    except PdtrimError:
        # Torn or of another version: measured anew.
        return found
    if before.subject == now.subject:
        for timing in before.timings:
            found.setdefault(timing.setting, []).append(timing)
    return found


def _named(setting: Setting) -> str:
    measure, batch, tokens = setting
    return f"decode, batch {batch}, context {tokens}" if measure == "decode" else f"{measure}, {tokens} tokens"
