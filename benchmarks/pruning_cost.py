"""How long a whole pruning takes, against a loop that removes one block after the other, and which plan is better.

    python benchmarks/pruning_cost.py [--data DIR] [--objective margin] [--state FILE] [--json FILE]

Ours is a run of pdtrim-core: draw the items, score the blocks, search, split the stages; opening the model, the closing
table and writing are left out, and so are merges, which only other recipes train. Theirs is the loop of SLEB (Song et al.
2024, arXiv:2402.09025, Alg. 1): remove the block whose loss hurts least, measure all the rest again, five times. A
measurement of the loop is the plain way: a physically pruned copy in lm-evaluation-harness' `HFLM.loglikelihood`, whose
copying is not counted. Both use the same items and the same objective; SLEB's own is the loss on text. Both use one thread,
and the ratio is that of processor time: the two do not run in turn, so a machine that is busy with other work may be so for
one of them only.

The loop takes long, so each of its measurements goes to `--state` with its time; a run that finds them there adds them up.
Both plans are measured at the end on held-out items.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plain_way import PlainWay, Timed
from subject import COUNT, Subject, add_options, open_subject, write

from pdtrim_core import Drop, Plan, Removal
from pdtrim_core.data.items import digest_of
from pdtrim_core.data.readings import standard_error
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.files.atomic_files import cache_folder
from pdtrim_core.pipeline.pipeline import run

NOT_COUNTED = ("open the model", "evaluate", "write")


class Loop:
    """The loop that removes one block after the other; measurements made before are read from a file."""

    def __init__(self, subject: Subject, state: Path, *, batch_size: int) -> None:
        self._subject = subject
        self._state = state
        self._plain = PlainWay(subject.model, subject.samples, subject.calibration.items, batch_size=batch_size)
        lines = state.read_text(encoding="utf-8").splitlines() if state.exists() else []
        self._known = {tuple(entry["removed"]): entry for entry in map(json.loads, lines)}
        self.times: list[Timed] = []

    def measure(self, removed: Sequence[int]) -> float:
        """Return the mean of the objective without some blocks."""
        key = tuple(sorted(removed))
        if key not in self._known:
            sums, taken = self._plain.measure(key)
            values = self._plain.values(self._subject.recipe.objective, sums)
            self._known[key] = {"removed": key, "mean": sum(values) / len(values), "wall": taken.wall, "cpu": taken.cpu}
            self._state.parent.mkdir(parents=True, exist_ok=True)
            with self._state.open("a", encoding="utf-8") as file:
                file.write(json.dumps(self._known[key]) + "\n")
        entry = self._known[key]
        self.times.append(Timed(entry["wall"], entry["cpu"]))
        return float(entry["mean"])

    def run(self) -> list[int]:
        """Return the blocks that the loop removes, in its order; on ties the first block goes."""
        removed: list[int] = []
        while len(removed) < COUNT:
            left = [block for block in range(self._subject.model.block_count) if block not in removed]
            means = {block: self.measure([*removed, block]) for block in left}
            removed.append(max(left, key=lambda block: (round(means[block], 9), -block)))
            print(f"loop: {len(self.times)} measurements, removed {removed}, mean {means[removed[-1]]:.4f}", flush=True)
        return removed


def state_file(subject: Subject, options: argparse.Namespace) -> Path:
    """Return where the loop keeps its measurements: named by all that they depend on."""
    objective = subject.recipe.objective
    what = [
        subject.model.fingerprint,
        options.dtype,
        digest_of(subject.calibration.items),
        objective.name,
        str(options.batch_size),
    ]
    return cache_folder() / "benchmarks" / f"loop-{hashlib.sha256(' '.join(what).encode()).hexdigest()[:16]}.jsonl"


def values_apart(subject: Subject, plan: Plan) -> list[float]:
    """Return the objective's values on the held-out items."""
    staged = StagedModel(PrefixCache(subject.model, ExecutionOptions(packed=True)), plan)
    return [float(value) for value in subject.recipe.objective.item_values(staged, subject.calibration.held_out)]


def compare(subject: Subject, ours: Plan, theirs: Plan) -> dict[str, Any]:
    """Return the points of both plans on the held-out items, and of their difference, with standard errors over items."""
    objective = subject.recipe.objective
    found: dict[str, Any] = {}
    values = {name: values_apart(subject, plan) for name, plan in {"dense": Plan(), "ours": ours, "theirs": theirs}.items()}
    for name, own in values.items():
        mean = sum(own) / len(own)
        found[name] = {"mean": mean, "mean_error": standard_error(own), "points": objective.score(mean)}
    gaps = [one - other for one, other in zip(values["ours"], values["theirs"], strict=True)]
    found["gain"] = {"mean": sum(gaps) / len(gaps), "mean_error": standard_error(gaps)}
    return found


def whole_run(subject: Subject) -> tuple[Plan, dict[str, float], float]:
    """Run the recipe; return its plan, the seconds of the steps that count, and its share of a processor."""
    start = Timed.now()
    outcome = run(subject.recipe, subject.host, fresh=True)
    taken = Timed.since(start)
    assert outcome.environment.data == digest_of(subject.calibration.items)
    steps = {name: seconds for name, seconds in outcome.seconds.items() if name not in NOT_COUNTED}
    print("ours:", ", ".join(f"{name} {seconds:.1f} s" for name, seconds in steps.items()), flush=True)
    return outcome.plan.plan, steps, taken.cpu / taken.wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=64)
    parser.add_argument("--held-out", type=int, help="held-out items (default: 64 of mini, 512 of --data)")
    parser.add_argument("--state", type=Path, help="file of the loop's measurements (default: one in the cache folder)")
    options = parser.parse_args()
    subject = open_subject(options, held_out=options.held_out)
    objective = subject.recipe.objective
    print(subject.items)
    plan, steps, share = whole_run(subject)
    loop = Loop(subject, options.state or state_file(subject, options), batch_size=options.batch_size)
    removed = loop.run()
    clock = {"ours": sum(steps.values()), "theirs": sum(time.wall for time in loop.times)}
    ours, theirs = clock["ours"] * share, sum(time.cpu for time in loop.times)
    figures = {
        "benchmark": "pruning_cost",
        "ratio": theirs / ours,
        "ours": ours,
        "theirs": theirs,
        "clock": {"ratio": clock["theirs"] / clock["ours"], **clock},
        "items": subject.items,
        "dtype": options.dtype,
        "objective": objective.name,
        "unit": objective.unit,
        "steps": steps,
        "measurements": len(loop.times),
        "plans": {"ours": str(plan), "theirs": removed},
        "apart": len(subject.calibration.held_out),
        "held_out": compare(subject, plan, Plan.unified(Removal(map(Drop, removed)))),
    }
    print_table(figures)
    write(options.json, subject.environment, figures)


def print_table(figures: dict[str, Any]) -> None:
    print(f"\n{'':8}{'processor':>10}{'clock':>10}   on {figures['apart']} held-out items")
    for name in ("ours", "theirs"):
        value = figures["held_out"][name]
        quality = f"{value['points']:.2f} points ({value['mean']:.4f} +- {value['mean_error']:.4f} {figures['unit']})"
        print(f"{name:8}{figures[name]:10.1f}{figures['clock'][name]:10.1f}   {quality}")
    print(f"{'ratio':8}{figures['ratio']:10.1f}{figures['clock']['ratio']:10.1f}")
    gain = figures["held_out"]["gain"]
    print(f"ours less theirs, item by item: {gain['mean']:.4f} +- {gain['mean_error']:.4f} {figures['unit']}")


if __name__ == "__main__":
    main()
