"""A model whose weights stay on the disk: scored, measured under plans, folded and exported, with the memory and the bytes read.

    python benchmarks/streaming.py [--shape llama-3-8b] [--folder DIR] [--items 16] [--plans 8] [--fit map] [--json FILE]

The weights are random, in bfloat16, and written by the benchmark shard by shard; the folder is deleted at the end. `read` counts
the blocks and the heads that were brought into memory. `from_disk` is what the system says that this process read: what it kept
of the files in its own cache it need not read again. `memory` is the peak beyond that of the interpreter with all libraries
loaded. Exit code 1: scores and fold together read more than twice the weights.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from random import Random
from typing import Any

import torch
from subject import begin_peak, environment, status, write

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, Drop, Item, RecoveryContext, Removal
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.walked import Walked
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.search.stopping import Stop
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.checkpoint_folder import Storage, write_checkpoint
from pdtrim_plugins.exporters.configs import ordinary
from pdtrim_plugins.exporters.shards import ShardWriter
from pdtrim_plugins.exporters.stages import Parts, decode_blocks
from pdtrim_plugins.model_sources import FolderModel
from pdtrim_plugins.objectives import Margin
from pdtrim_plugins.recoveries import Fold
from pdtrim_plugins.scorers import Cosine

SHAPES: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "vocab_size": 128256,
        "tie_word_embeddings": False,
    },
    "llama-3.2-1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "vocab_size": 128256,
        "tie_word_embeddings": True,
    },
}
COUNT = 5
"""Blocks that go."""
SHARD = 10**9
NOISE = 2**24
WORDS = 256
"""Tokens of the items: those of the tiny tokenizer."""


def write_model(folder: str, shape: str) -> None:
    """Write a checkpoint of a shape with random weights, no more than a tensor of which is in memory."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    save_tiny_model(folder)
    (Path(folder) / "model.safetensors").unlink()
    config = LlamaConfig(**SHAPES[shape], max_position_embeddings=2048, dtype="bfloat16")
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    noise = (0.02 * torch.randn(NOISE, generator=generator)).to(torch.bfloat16)
    writer = ShardWriter(Path(folder), SHARD)
    for number, (name, weight) in enumerate(model.named_parameters()):
        rolled = noise.roll(7919 * number).repeat(-(-weight.numel() // NOISE))[: weight.numel()].view(weight.shape)
        writer.add({name: torch.ones_like(rolled) if weight.dim() == 1 else rolled})
    writer.finish()


def from_disk() -> int:
    """Return how many bytes this process has had read from the disk."""
    lines = Path("/proc/self/io").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes:"))


class Steps:
    """The figures of the steps, each beyond what the interpreter took at the start; `written` is called behind each."""

    def __init__(self, written: Callable[[list[dict[str, Any]]], None]) -> None:
        self.rows: list[dict[str, Any]] = []
        self._written = written
        self._empty = status("VmRSS")

    @contextmanager
    def step(self, name: str, read: Callable[[], int]) -> Iterator[None]:
        """Measure what happens inside the context."""
        begin_peak()
        started, cpu, before, disk = time.perf_counter(), time.process_time(), read(), from_disk()
        yield
        row: dict[str, Any] = {
            "step": name,
            "seconds": round(time.perf_counter() - started, 1),
            "cpu_seconds": round(time.process_time() - cpu, 1),
            "read": read() - before,
            "from_disk": from_disk() - disk,
            "memory": status("VmHWM") - self._empty,
        }
        self.rows.append(row)
        self._written(self.rows)
        gigabytes = "  ".join(f"{row[key] / 1e9:8.2f} GB" for key in ("read", "from_disk", "memory"))
        print(f"{name:32}{row['seconds']:9.1f} s{gigabytes}", flush=True)


def some_items(count: int) -> list[Item]:
    """Return items of 32 to 48 tokens with two choices of 8."""
    rng = Random(0)

    def tokens(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(WORDS) for _ in range(length))

    return [Item((tokens(rng.randint(32, 48)),), (tokens(8), tokens(8)), 0, (8, 8), f"item {n}") for n in range(count)]


def measure(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Take the model through all steps."""
    host, items = load_plugins(), some_items(options.items)
    sequences, opened = [item.tokens for item in items], list[BlockModel]()
    found: dict[str, Any] = {"shape": options.shape, "tokens": sum(map(len, sequences))}

    def written(rows: list[dict[str, Any]]) -> None:
        found.update(rows=rows, weights=sum(parameter.nbytes for parameter in opened[0].model.parameters()))
        write(options.json, environment(), {"benchmark": "streaming", **found})

    def read() -> int:
        on_disk = opened[0].on_disk if opened else None
        return on_disk.bytes_read if on_disk else 0

    steps = Steps(written)
    with steps.step("open", read):
        opened.append(open_model(FolderModel(path=str(folder), placement="stream"), host))
    model = opened[0]
    with steps.step("score", read):
        scores = Cosine().score(ScoreContext(model, sequences)).block
    ranked = sorted(range(1, model.block_count), key=lambda block: -scores[block])
    plans = [Plan.unified(Removal([Drop(block)])) for block in sorted(ranked[: options.plans])]
    cache, known = PrefixCache(model, ExecutionOptions(budget=options.budget)), dict[Any, float]()
    measurement = Measurement(lambda: cache, ObjectiveOnItems(Margin(), items, "margin"), known=lambda _: known)
    with steps.step(f"measure {len(plans)} plans", read):
        list(measurement.together(plans, Stop(), {}))
    cache.forget()
    plan = Plan.unified(Removal([Drop(block) for block in ranked[:COUNT]]))
    pair = Walked(model, plan, {}, items)
    with steps.step(f"fold ({options.fit})", read):
        Fold(fit=options.fit, tokens=sum(map(len, sequences))).recover(RecoveryContext(pair, [], Random(0), folder))
    with steps.step("export", read):
        stored = decode_blocks(Parts(model, folder), plan)
        out = folder / "decode"
        out.mkdir()
        write_checkpoint(out, model, ordinary(model, stored), stored, Storage("auto", SHARD))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", default="llama-3-8b", choices=SHAPES, help="the model (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where the checkpoint is written (default: the system's temporary folder)")
    parser.add_argument("--items", type=int, default=16, help="items that score and measure (default: %(default)s)")
    parser.add_argument("--plans", type=int, default=8, help="plans that are measured together (default: %(default)s)")
    parser.add_argument("--fit", default="map", choices=("map", "projection"), help="what fold fits (default: %(default)s)")
    parser.add_argument("--budget", type=float, default=5e8, help="bytes for hidden states (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    options.budget = int(options.budget)
    torch.set_num_threads(options.threads)
    folder = Path(tempfile.mkdtemp(prefix="pdtrim-streaming-", dir=options.folder))
    try:
        writing = get_context("spawn").Process(target=write_model, args=(str(folder / "model"), options.shape))
        writing.start()
        writing.join()
        if writing.exitcode:
            sys.exit("the checkpoint could not be written")
        found = measure(folder / "model", options)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    read = {row["step"].split()[0]: row["read"] / found["weights"] for row in found["rows"]}
    print(json.dumps({step: round(share, 2) for step, share in read.items()}))
    if read["score"] + read["fold"] > 2:
        sys.exit("scores and fold together read more than twice the weights")


if __name__ == "__main__":
    main()
