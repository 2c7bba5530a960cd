"""A plan does not depend on the machine: all kernels that torch has for the processor, and one thread or two, give the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.numeric]
PROGRAM = Path(sys.executable).with_name("pdtrim-core")
BLOCKS = Path(__file__).parents[2] / "examples" / "blocks.toml"
KERNELS = ("default", "avx2", None)
"""What torch is told of the processor: nothing but the least, a width that most have, and nothing, so that it looks."""


FEWER = ("--set", "calibration.samples=16", "--set", "calibration.held_out=8", "--set", "searcher.candidates=5")
"""What makes that search short enough for a processor's least kernels: the same steps on fewer items."""
NO_RECOVERY = ("--set", "recovery=none")
"""A plan's file has a hash of recovered weights, whose last digits do depend on the machine."""


def plan_of(recipe: Path, out: Path, kernels: str | None, threads: int) -> bytes:
    """Run a recipe in a process of its own; return its plan's file."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    environment.pop("ATEN_CPU_CAPABILITY", None)
    if kernels is not None:
        environment["ATEN_CPU_CAPABILITY"] = kernels
    changes = ["--set", f"evaluation.threads={threads}", "--set", "evaluation.fidelity=false"]
    done = subprocess.run(
        [PROGRAM, "run", recipe, "--out", out, *changes, *((*FEWER, *NO_RECOVERY) if recipe == BLOCKS else ())],
        env=environment,
        cwd=out.parent,
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return (out / "plan.json").read_bytes()


def plans_of(recipe: Path, folder: Path, machines: Iterable[tuple[str | None, int]]) -> set[bytes]:
    """Run a recipe on machines with such kernels and threads, two at a time; return the plans' files."""
    with ThreadPoolExecutor(2) as pool:
        runs = [pool.submit(plan_of, recipe, folder / f"{kernels}-{threads}", kernels, threads) for kernels, threads in machines]
        return {run.result() for run in runs}


def test_a_tiny_recipe_gives_the_same_plan_byte_for_byte_with_any_kernels(recipe: Path, tmp_path: Path) -> None:
    assert len(plans_of(recipe, tmp_path, [(kernels, 1) for kernels in KERNELS])) == 1


def test_a_tiny_recipe_gives_the_same_plan_byte_for_byte_with_any_number_of_threads(recipe: Path, tmp_path: Path) -> None:
    assert len(plans_of(recipe, tmp_path, [(None, threads) for threads in (1, 2)])) == 1


@pytest.mark.model
@pytest.mark.slow
def test_a_search_over_blocks_gives_the_same_plan_byte_for_byte_with_any_kernels(tmp_path: Path) -> None:
    assert len(plans_of(BLOCKS, tmp_path, zip(KERNELS, (1, 2, 2), strict=True))) == 1
