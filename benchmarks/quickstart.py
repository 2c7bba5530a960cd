"""Whether the quickstart holds what it shows, whatever the seed: its pair against unified pruning, ShortGPT and FLAP.

    python benchmarks/quickstart.py [--seeds 5] [--first 0] [--out DIR] [--json FILE]

Each seed draws other items to split on and other texts to learn from; the prompts that compare are the same, and nothing is
learned from them: the 64 held-out questions of `mini`, and as many pieces of what the modules of Python's library say of
themselves. The pair of `examples/quickstart.toml` is compared with its own decode in both stages, with the recipe that `make
demo` puts beside it, ShortGPT, and with FLAP in the place of ShortGPT: as many parameters gone (of whole blocks not quite), the
same kind of prefill, closed forms of recovery, and both as pairs and in both stages. What is compared is the KL along the dense
model's answers, paired over prompts. It holds if the pair is nearer by more than three standard errors each time, and its
prefill is at least a fifth cheaper than the dense one.

The pair and its own decode in both stages differ least, and a single prompt that one of them answers very badly would make most
of the error, so they are compared on 128 pieces more, of what the library's classes and functions say.

Every run has a folder under `--out`; one that is done is not done again. About twenty minutes of one core a seed.
"""

from __future__ import annotations

import argparse
import json
from itertools import chain
from pathlib import Path
from random import Random
from typing import Any

from paired import Sums, gap, kl_of, variants_of
from subject import environment, write
from texts import WITHIN, library_prose

from pdtrim_core import load_plugins
from pdtrim_core.api import Item, Outcome, encode
from pdtrim_core.fidelity.inputs import text_inputs
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load
from pdtrim_core.results.task_results import Variant
from pdtrim_plugins.calibrations import Mini

EXAMPLES = Path(__file__).parents[1] / "examples"
OTHERS = ("ShortGPT", "FLAP")
VARIANTS: tuple[Variant, ...] = ("unified", "staged")
PROMPTS = 64
"""Prompts of each kind that compare."""
MORE = 128
"""Pieces of prose more on which the pair is compared with its decode in both stages."""
ANSWER_TOKENS = 32
SURE = 3.0
CHEAPER = 0.2


def ways(seed: int) -> dict[str, dict[str, Any]]:
    """Return the recipes of one seed: the quickstart's, and two other pruners. Fidelity is measured here, on more prompts."""
    given = [load(EXAMPLES / name) | {"seed": seed} for name in ("quickstart.toml", "quickstart_shortgpt.toml")]
    pair, other = ({**data, "evaluation": {"fidelity": False}, "report": []} for data in given)
    return {"pair": pair, "ShortGPT": other, "FLAP": {**other, "pruner": "flap", "prune": pair["prune"]}}


def prompts(tokenizer: Any, more: int) -> list[Item]:
    """Return the prompts that compare, and so many pieces of prose more."""
    questions = [encode(sample, tokenizer) for sample in Mini().draw_held_out(PROMPTS, Random(0))]
    prose = [(library_prose(), "modules", PROMPTS), (library_prose(WITHIN), "classes and functions", more)]
    pieces = [text_inputs(text, name, tokenizer, share=0.5, count=count).items for text, name, count in prose if count]
    return [*questions, *chain(*pieces)]


def measured(name: str, data: dict[str, Any], out: Path, host: PluginHost, shared: RunCache) -> tuple[Outcome, dict[str, Sums]]:
    """Run a recipe, or read what it found; return its outcome, and the KL of each variant prompt by prompt."""
    if not (out / "outcome.json").is_file():
        run(Recipe.from_data(data, where=name, out=out, host=host), host, shared=shared)
    loaded = load_run(out, shared=shared)
    items = prompts(loaded.dense.tokenizer, MORE if name == "pair" else 0)
    sums = variants_of(loaded, VARIANTS, items, out / "prompts.json", length=ANSWER_TOKENS)
    return loaded.outcome, dict(zip(VARIANTS, sums, strict=True))


def of_seed(seed: int, out: Path, host: PluginHost, shared: RunCache) -> dict[str, Any]:
    """Return the figures of one seed, and whether they hold."""
    found = {
        name: measured(name, way, out / f"{name.replace(' ', '-')}-seed{seed}", host, shared) for name, way in ways(seed).items()
    }
    outcome, pair = found["pair"]
    others = {
        "its decode in both stages": pair["unified"],
        **{f"{name} in both stages": found[name][1]["unified"] for name in OTHERS},
        **{f"{name} as a pair": found[name][1]["staged"] for name in OTHERS},
    }
    gaps = {name: gap(sums, pair["staged"]) for name, sums in others.items()}
    prefill = next(cost for cost in outcome.costs if cost.unit == "FLOPs")
    # On the prompts that all have.
    kl = kl_of({prompt: pair["staged"][prompt] for prompt in others[f"{OTHERS[0]} as a pair"]})
    holds = all(g.error is not None and g.value > SURE * g.error for g in gaps.values())
    return {
        "seed": seed,
        "kl": [kl.value, kl.error],
        "kl_of_others": {name: kl_of(sums).value for name, sums in others.items()},
        "prompts": {name: len(sums) for name, sums in others.items()},
        "nearer_by": {name: [g.value, g.error] for name, g in gaps.items()},
        "prefill": prefill.plan / prefill.dense,
        "seconds": sum(outcome.seconds.values()),
        "holds": holds and prefill.plan <= (1 - CHEAPER) * prefill.dense,
    }


def main() -> None:
    """Compare over the seeds and print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds (default: %(default)s)")
    parser.add_argument("--first", type=int, default=0, help="the seed to begin with: the figures of those before it stay")
    parser.add_argument("--out", type=Path, default=Path("runs/quickstart-seeds"), help="folder of the runs")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    host, shared, known = load_plugins(), RunCache(), options.json if options.first else None
    kept = json.loads(known.read_text(encoding="utf-8"))["rows"] if known else []
    rows: list[dict[str, Any]] = [row for row in kept if row["seed"] < options.first]
    for seed in range(options.first, options.seeds):
        row = of_seed(seed, options.out, host, shared)
        rows.append(row)
        nearer = ", ".join(f"{name} {value:.3f} +- {error:.3f}" for name, (value, error) in row["nearer_by"].items())
        print(f"seed {seed}: KL {row['kl'][0]:.3f}, nearer by: {nearer}; prefill {row['prefill']:.3f}; holds: {row['holds']}")
        write(options.json, {"benchmark": "quickstart", **environment()}, {"rows": rows})
    print(f"{sum(row['holds'] for row in rows)} of {len(rows)} seeds hold")


if __name__ == "__main__":
    main()
