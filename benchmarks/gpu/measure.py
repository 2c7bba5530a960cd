"""Table 3, the pruning cost and the refinement of an 8B shape on one accelerator, with random weights.

    benchmarks/gpu/run.sh [--tiny] [--out FILE] [--shape NAME] [--minutes N]

Weights are random, made where they stay: time depends on shapes, so the times are those of the real model, and what the plans
are worth is not measured. Parts that begin after the minutes are over are left out and named; the file is written after
each part. `--tiny` does all of it with a tiny shape in seconds, on whatever there is.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import importlib.metadata
import json
import pkgutil
import re
import subprocess
import tempfile
import time
import zlib
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

import pdtrim_plugins
from pdtrim_core import PdtrimError, PluginHost, Recipe, RunCache, hookimpl, load_plugins
from pdtrim_core.api import BlockModel, LoadedModel, ModelSource
from pdtrim_core.api.hookspecs import PROJECT
from pdtrim_core.cli.latency_tables import print_latencies
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.results.outcome import machine, versions
from pdtrim_core.timing.bench import device_name, measure
from pdtrim_core.timing.latency import Grid
from pdtrim_core.timing.shapes import random_model, read_shape
from pdtrim_core.timing.subjects import BlocksToRemove, subjects_of_shape

ROOT = Path(__file__).parents[2]
NOT_COUNTED = ("open the model", "evaluate", "write")
PAPER_TABLE3 = {"dense": 287.35, "13.58 percent": 236.63, "about 50 percent": 151.89}
"""Milliseconds in float32 of LLaMA3.1-8B, on the paper's machine (its Table 3)."""
PAPER_TABLE4 = {"ours": 44.06, "SLEB": 183.6}
"""Seconds that pruning five blocks of it takes (its Table 4)."""
TINY = {
    "model_type": "llama",
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
}


class WordTokenizer:
    """A tokenizer whose tokens are words, so that texts are about as long as with a real one; what they mean is lost."""

    bos_token_id, eos_token_id, pad_token_id = 0, 1, 2

    def __init__(self, vocabulary: int) -> None:
        self._vocabulary = vocabulary

    def __call__(self, text: str, **_options: object) -> dict[str, list[int]]:
        words = re.findall(r"\s*\S+|\s+$", text)
        return {"input_ids": [3 + zlib.crc32(word.encode()) % (self._vocabulary - 3) for word in words]}


def device() -> torch.device:
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.get_default_device()


def host_of_checkout() -> PluginHost:
    """Return a host with the built-ins; a checkout that is not installed has no entry points, so they are taken in by hand."""
    host = load_plugins()
    if not any(point.module.startswith("pdtrim_plugins") for point in importlib.metadata.entry_points(group=PROJECT)):
        for found in pkgutil.iter_modules(pdtrim_plugins.__path__):
            module = importlib.import_module(f"pdtrim_plugins.{found.name}")
            host.register(module, Origin(found.name, "pdtrim-core"))
    return host


def with_random_models(host: PluginHost, dtype: torch.dtype) -> PluginHost:
    """Add the model source random:NAME to a host."""

    class RandomModel(ModelSource):
        """A published shape with random weights."""

        name = "random"

        @classmethod
        def accepts(cls, path: str) -> bool:
            return path.startswith("random:")

        def open(self) -> LoadedModel:
            made = random_model(read_shape(self.path.removeprefix("random:"), host, dtype), host, device())
            return LoadedModel(made.model, WordTokenizer(made.config.vocab_size), self.path)

        def open_config(self) -> Any:
            return read_shape(self.path.removeprefix("random:"), host, dtype).config

    host.register(SimpleNamespace(pdtrim_model_sources=hookimpl(lambda: [RandomModel])), Origin("random", "benchmarks/gpu"))
    return host


def free_memory_again() -> None:
    gc.collect()
    if device().type != "cpu":
        torch.get_device_module(device()).empty_cache()


def table3(host: PluginHost, shape: str, options: argparse.Namespace, dtype: Any) -> dict[str, Any]:
    """Time the forward of Table 3 at both of its ratios, and with the first what prefill and decode gain."""
    found = {}
    for number, blocks in enumerate(options.blocks):
        subjects = subjects_of_shape(shape, BlocksToRemove(decode=blocks), host, dtype)
        whole = Grid(options.tokens, options.lengths, options.batches, options.contexts, options.repeats)
        grid = whole if number == 0 and dtype != "float32" else Grid(options.tokens, (), (), (), options.repeats)
        latencies = measure(subjects, grid, None)
        print(f"\n== Table 3: {blocks} of {latencies.block_count} blocks, {dtype}")
        print_latencies(latencies)
        found[str(blocks)] = json.loads(latencies.to_json())
        del subjects
        free_memory_again()
    return found


class Prunings:
    """Prunes the shape in several ways. The model is opened once; nothing else is shared, so that no way measures for another."""

    def __init__(self, host: PluginHost, options: argparse.Namespace) -> None:
        self._host = host
        self._options = options

    @cached_property
    def _model(self) -> BlockModel:
        recipe = self._resolved("model", {}, Path())
        model = open_model(recipe.model, self._host)
        # Read once here, so that it is in no way's time.
        assert model.fingerprint
        return model

    def carry_out(self, name: str, **parts: Any) -> dict[str, Any]:
        """Run a recipe in a folder of its own; return its seconds by step and what they add up to."""
        with tempfile.TemporaryDirectory() as folder:
            recipe = self._resolved(name, parts, Path(folder) / "run")
            shared = RunCache()
            shared.latest("model", keys_of(recipe).model, lambda: self._model)
            outcome = run(recipe, self._host, shared=shared)
        steps = {step: seconds for step, seconds in outcome.seconds.items() if step not in NOT_COUNTED}
        total = sum(steps.values())
        print(
            f"\n== {name}: {total:.1f} s ({', '.join(f'{step} {seconds:.1f} s' for step, seconds in steps.items())})", flush=True
        )
        saved = outcome.plan.plan
        return {
            "seconds": total,
            "steps": outcome.seconds,
            "candidates": outcome.candidates,
            "plan": {"prefill": str(saved.prefill), "decode": str(saved.decode)},
            "given_back": f"{sum(gain.kept_in_prefill for gain in outcome.gains)} of {len(saved.decode)}",
            "merges_trained": len(outcome.merges),
            "notes": outcome.notes,
        }

    def _resolved(self, name: str, parts: dict[str, Any], out: Path) -> Recipe:
        data = {
            "model": {"path": f"random:{self._options.shape}"},
            "calibration": {"use": "mini", "samples": self._options.samples, "held_out": 0},
            "objective": "accuracy",
            "recovery": "none",
            "prune": {"blocks": self._options.blocks[0], **({} if "pruner" in parts else {"merges": False})},
            "exporter": [],
            **parts,
        }
        return Recipe.from_data(data, where=name, out=out, host=self._host)


def parts(host: PluginHost, options: argparse.Namespace) -> dict[str, Callable[[], dict[str, Any]]]:
    """Return what is measured, in the order of what matters most."""
    shape, prunings = options.shape, Prunings(host, options)
    gain = {"use": "gain", "threshold": 3.0}
    ways: dict[str, dict[str, Any]] = {
        "pruning cost, ours": {"splitter": gain},
        "refinement of another pruner's plan": {"pruner": "shortgpt", "splitter": {**gain, "unit": "relative"}},
        "pruning cost, SLEB's loop": {"searcher": "sequential", "splitter": "unified"},
        "one trained merge": {
            "searcher": "greedy",
            "splitter": "unified",
            "distiller": {"use": "mse", "epochs": 1},
            "prune": {"blocks": 1, "merge_threshold": -1.0},
        },
    }
    return {
        "table3 bfloat16": lambda: table3(host, shape, options, "bfloat16"),
        "table3 float32": lambda: table3(host, shape, options, "float32"),
        **{name: partial(prunings.carry_out, name, **way) for name, way in ways.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny shape, in seconds")
    parser.add_argument("--shape", default="llama-3.1-8b", help="a published shape or a config.json (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("gpu-benchmark.json"), help="the file to write (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=8.0, help="no part begins after so many minutes (default: %(default)s)")
    options = parser.parse_args()
    given = vars(options)
    given.update(
        blocks=(5, 18), tokens=1024, lengths=(128, 1024, 4096), batches=(1, 16), contexts=(1024,), repeats=10, samples=64
    )
    with tempfile.TemporaryDirectory() as folder:
        if options.tiny:
            (Path(folder) / "config.json").write_text(json.dumps(TINY), encoding="utf-8")
            small = {
                "blocks": (1, 3),
                "tokens": 64,
                "lengths": (32,),
                "batches": (1,),
                "contexts": (32,),
                "repeats": 2,
                "samples": 8,
            }
            given.update(small, shape=folder)
        elif device().type == "cpu":
            parser.error("there is no accelerator: --tiny tries everything with a tiny shape on a processor")
        carry_all_out(options)


def carry_all_out(options: argparse.Namespace) -> None:
    host = with_random_models(host_of_checkout(), torch.bfloat16)
    started = time.perf_counter()
    figures: dict[str, Any] = {
        "benchmark": "gpu",
        "shape": "tiny" if options.tiny else options.shape,
        "random_weights": True,
        "device": device_name(device()),
        "machine": machine(),
        "versions": versions(),
        "commit": commit(),
        "paper": {"Table 3, ms": PAPER_TABLE3, "Table 4, s": PAPER_TABLE4},
        "parts": {},
        "left_out": {},
    }
    for name, part in parts(host, options).items():
        passed = time.perf_counter() - started
        if passed > 60 * options.minutes:
            figures["left_out"][name] = f"{passed:.0f} s had passed"
            print(f"\n== {name}: left out, {passed:.0f} s had passed")
            continue
        try:
            figures["parts"][name] = part()
        except (PdtrimError, RuntimeError, MemoryError) as error:
            # What one part cannot do here, memory above all, says nothing about the others.
            figures["left_out"][name] = f"{type(error).__name__}: {error}"
            print(f"\n== {name}: failed, {error}")
        free_memory_again()
        figures["seconds"] = round(time.perf_counter() - started, 1)
        options.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    print_summary(figures)
    print(f"\n{figures['seconds']:.0f} s on {figures['device']}; written: {options.out}")


def print_summary(figures: dict[str, Any]) -> None:
    """Print the paper's two tables with these figures."""
    print(f"\n{'Table 3, ms':34}{'dense':>9}{'pruned':>9}{'ratio':>8}{'ideal':>8}")
    for name, part in figures["parts"].items():
        for blocks, found in part.items() if name.startswith("table3") else ():
            timing = next(t for t in found["timings"] if (t["measure"], t["model"]) == ("forward", "unified"))
            what = f"{name.partition(' ')[2]}, {blocks} of {found['block_count']} blocks"
            times = f"{1000 * timing['dense']:9.2f}{1000 * timing['seconds']:9.2f}"
            print(f"{what:34}{times}{timing['ratio']:8.3f}{timing['ideal']:8.3f}")
    dense, *pruned = PAPER_TABLE3.items()
    for what, milliseconds in pruned:
        print(f"{'paper, float32, ' + what:34}{dense[1]:9.2f}{milliseconds:9.2f}{milliseconds / dense[1]:8.3f}")
    print(f"\n{'seconds':34}")
    for name, part in figures["parts"].items():
        if "seconds" in part:
            print(f"{name:34}{part['seconds']:9.1f}")
    for what, seconds in PAPER_TABLE4.items():
        print(f"{'paper, ' + what:34}{seconds:9.1f}")


def commit() -> str:
    command = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return ""


if __name__ == "__main__":
    main()
