"""Whether the quickstart holds what it shows, whatever the seed: its pair against unified pruning and ShortGPT.

    python benchmarks/quickstart.py [--recipe FILE] [--seeds 5] [--out DIR] [--json FILE]

Each seed draws other items to search on; the held-out prompts, which compare, are the same. The pair is compared with its own
decode in both stages, with the best decode that the same search finds for both stages at once, and with ShortGPT of as many
blocks, in both stages and with the pair's kind of prefill: KL along the dense model's answers, paired over prompts. It holds if
the pair is nearer by more than three standard errors each time, and its prefill is at least a fifth cheaper than the dense one.

Every run has a folder under `--out`; one that is done is not done again. About six minutes of two cores a seed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from paired import Sums, gap, kl_of, sums_of
from subject import environment, write

from pdtrim_core import load_plugins
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load
from pdtrim_core.results.fidelity import TASK
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.results.task_results import results_in

RECIPE = Path(__file__).parents[1] / "examples" / "quickstart.toml"
SURE = 3.0
CHEAPER = 0.2


def ways(data: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the recipes of one seed: the quickstart's, its search for both stages at once, and ShortGPT."""
    other = {key: value for key, value in data.items() if key not in ("searcher", "scorer", "search")}
    prune = {key: value for key, value in data["prune"].items() if key != "merges"}
    return {
        "pair": data,
        "searched unified": {**data, "splitter": "unified"},
        "ShortGPT": {**other, "prune": prune, "pruner": "shortgpt"},
    }


def measured(name: str, data: dict[str, Any], out: Path, host: PluginHost, shared: RunCache) -> tuple[Outcome, dict[str, Sums]]:
    """Run a recipe, or read what it found; return its outcome, and the KL of each variant prompt by prompt."""
    if not (out / "outcome.json").is_file():
        run(Recipe.from_data({**data, "report": []}, where=name, out=out, host=host), host, shared=shared)
    outcome = Outcome.from_json((out / "outcome.json").read_text(encoding="utf-8"))
    results = [result for result in results_in(out) if result.task == TASK]
    return outcome, {result.variant: sums_of([result]) for result in results}


def of_seed(seed: int, data: dict[str, Any], out: Path, host: PluginHost, shared: RunCache) -> dict[str, Any]:
    """Return the figures of one seed, and whether they hold."""
    found = {
        name: measured(name, way, out / f"{name.replace(' ', '-')}-seed{seed}", host, shared)
        for name, way in ways({**data, "seed": seed}).items()
    }
    outcome, pair = found["pair"]
    others = {
        "its decode in both stages": pair["unified"],
        "searched for both stages": found["searched unified"][1]["unified"],
        "ShortGPT in both stages": found["ShortGPT"][1]["unified"],
        "ShortGPT as a pair": found["ShortGPT"][1]["staged"],
    }
    gaps = {name: gap(sums, pair["staged"]) for name, sums in others.items()}
    prefill = next(cost for cost in outcome.costs if cost.unit == "FLOPs")
    kl = kl_of(pair["staged"])
    holds = all(g.error is not None and g.value > SURE * g.error for g in gaps.values())
    return {
        "seed": seed,
        "decode": str(outcome.plan.plan.decode),
        "kl": [kl.value, kl.error],
        "kl_of_others": {name: kl_of(sums).value for name, sums in others.items()},
        "nearer_by": {name: [g.value, g.error] for name, g in gaps.items()},
        "prefill": prefill.plan / prefill.dense,
        "seconds": sum(outcome.seconds.values()),
        "holds": holds and prefill.plan <= (1 - CHEAPER) * prefill.dense,
    }


def main() -> None:
    """Compare over the seeds and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPE, help="the recipe (default: that of the quickstart)")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-seeds"), help="folder of the runs")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    host, shared, data, rows = load_plugins(), RunCache(), load(options.recipe), list[dict[str, Any]]()
    for seed in range(options.seeds):
        row = of_seed(seed, data, options.out, host, shared)
        rows.append(row)
        nearer = ", ".join(f"{name} {value:.3f} +- {error:.3f}" for name, (value, error) in row["nearer_by"].items())
        print(f"seed {seed}: KL {row['kl'][0]:.3f}, nearer by: {nearer}; prefill {row['prefill']:.3f}; holds: {row['holds']}")
    print(f"{sum(row['holds'] for row in rows)} of {len(rows)} seeds hold")
    write(options.json, {"benchmark": "quickstart", **environment()}, {"rows": rows})


if __name__ == "__main__":
    main()
