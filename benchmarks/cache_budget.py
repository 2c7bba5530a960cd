"""What memory for hidden states buys: one search under several budgets of the prefix cache, with the same numbers under each.

    python benchmarks/cache_budget.py [--samples 64] [--searcher annealing] [--budgets 0 256e6 1e9 default] [--json FILE]

Each search is the recipe's own over the same items and begins with an empty prefix cache. `once` is to lay out the batches and
to measure the dense model; `search` is all that follows. Times are CPU time of one thread, memory is what hidden states that
were kept take in the end. Exit code 1: a budget changed a number.
"""

from __future__ import annotations

import argparse
import sys
from random import Random
from typing import Any

from plain_way import Timed
from subject import COUNT, Subject, add_options, open_subject, write

from pdtrim_core import Plan
from pdtrim_core.api import CostModel, SearchSpace
from pdtrim_core.data.readings import Reading
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.prepare import score
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.search.driver import Ledger, drive
from pdtrim_core.search.space import search_space, two_sets

NO_MERGES = 1.1
DEFAULT = "default"


def searched(
    subject: Subject, recipe: Recipe, space: SearchSpace, budget: str, *, packed: bool
) -> tuple[dict[str, Any], list[Any]]:
    """Return what a search under one budget took, and all that it measured."""
    items = subject.calibration.items
    options = ExecutionOptions(budget=None if budget == DEFAULT else int(float(budget)), packed=packed)
    prefix_cache = PrefixCache(subject.model, options)
    measure = Measurement(lambda: prefix_cache, ObjectiveOnItems(recipe.objective, items, "the objective"))
    measured: list[tuple[Plan, Reading]] = []

    def kept(plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        reading = measure(plan, floor, started)
        measured.append((plan, reading))
        return reading

    start = Timed.now()
    kept(Plan(), None, None)
    once, start = Timed.since(start), Timed.now()
    rng = Random(f"{recipe.settings.seed} search")
    drive(recipe.searcher.search(space, rng), Ledger(kept), label="the searcher", problems=space.problems)
    took = Timed.since(start)
    figures = {
        "budget": budget,
        "once_seconds": once.cpu,
        "search_seconds": took.cpu,
        "candidates": len(measured) - 1,
        "bytes": prefix_cache.kept_bytes,
    }
    return figures, measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=64)
    parser.add_argument("--searcher", default="annealing", help="the searcher, with its defaults (default: %(default)s)")
    parser.add_argument("--budgets", nargs="+", default=["0", "256e6", "1e9", DEFAULT], help="bytes, or default")
    options = parser.parse_args()
    subject = open_subject(options)
    recipe = Recipe.from_data(
        {**subject.recipe.to_data(), "searcher": options.searcher},
        where="benchmark.toml",
        out=subject.recipe.out,
        host=subject.host,
    )
    scores = score(recipe, subject.host, subject.model, subject.calibration)
    costs = CostModel(subject.model.block_count, subject.model.sizes)
    space = search_space(scores, COUNT, two_sets(scores, COUNT, NO_MERGES), costs)
    packed = packing_agrees(subject.model, subject.calibration.items, batch_tokens=None)
    about = {"benchmark": "cache_budget", "items": subject.items, "objective": options.objective, "searcher": options.searcher}
    found: list[dict[str, Any]] = []
    before: list[tuple[Plan, Reading]] | None = None
    print(f"{subject.items}; {options.searcher}, {options.objective}")
    print(f"{'budget':>10}{'kept':>10}{'once':>9}{'search':>10}{'candidates':>12}")
    for budget in options.budgets:
        figures, measured = searched(subject, recipe, space, budget, packed=packed)
        found.append(figures)
        print(
            f"{budget:>10}{figures['bytes'] / 1e6:7.0f} MB{figures['once_seconds']:7.1f} s{figures['search_seconds']:8.1f} s"
            f"{figures['candidates']:>12}",
            flush=True,
        )
        if before is not None and measured != before:
            sys.exit(f"a budget of {budget} changed a number")
        before = measured
        write(options.json, subject.environment, {**about, "budgets": found})


if __name__ == "__main__":
    main()
