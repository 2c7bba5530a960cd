"""How many candidates a second a searcher measures that asks for lists of plans, against the plain way and one after the other.

    python benchmarks/plan_lists.py [--data DIR] [--objective margin] [--samples 64] [--steps 2] [--error 0.05] [--json FILE]

The candidates are those of `sequential`: at each step all removals of one block more than the best of the step before. `Each
whole` measures one after the other on all items, as before there were lists. `With a floor` each has to reach the best so far,
else it is given up; of a list only the best is wanted. A plan is given up once it is certain that it is not wanted
(`search.mode` exact), or with `--error` once that is likely enough. The plain way is that of `search_cost.py`, a physically
pruned copy in lm-evaluation-harness' `HFLM`, timed on `--sampled` of the candidates of each step. All of them measure a step in
turn, each of ours with a prefix cache of its own, with one thread. Exit code 1: without `--error` the ways found other
removals.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from plain_way import PlainWay, Timed
from subject import Subject, add_options, open_subject, write

from pdtrim_core import Plan
from pdtrim_core.api import Drop, Objective, Removal
from pdtrim_core.data.readings import Reading
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.fidelity.inputs import spread
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.search.stopping import Stop
from pdtrim_plugins.objectives import Divergence

WAYS = ("each whole", "one by one, with a floor", "as a list")


def measurement(subject: Subject, objective: Objective, error: float) -> Measurement:
    """Return what measures plans, with the dense model measured already."""
    items = subject.calibration.items
    options = ExecutionOptions(packed=packing_agrees(subject.model, items, batch_tokens=None))
    prefix_cache = PrefixCache(subject.model, options)
    found = Measurement(lambda: prefix_cache, ObjectiveOnItems(objective, items, "the objective"), error=error)
    found(Plan(), None, None)
    return found


def best_of_whole(measure: Measurement, plans: Sequence[Plan]) -> tuple[Plan, float]:
    """Return the best of some plans and its score, each asked for alone and measured on all items."""
    return best_of_singles(measure, plans, floors=False)


def best_of_singles(measure: Measurement, plans: Sequence[Plan], *, floors: bool = True) -> tuple[Plan, float]:
    """Return the best of some plans and its score, each asked for alone."""
    best: tuple[Plan, Reading] | None = None
    for plan in plans:
        stop = Stop() if best is None or not floors else Stop(best[1].score, best[1])
        *_, (_, reading) = measure.together([plan], stop, {})
        if reading.score is not None and (best is None or best[1].score is None or reading.score > best[1].score):
            best = plan, reading
    assert best is not None
    return _with_score(*best)


def best_of_list(measure: Measurement, plans: Sequence[Plan]) -> tuple[Plan, float]:
    """Return the best of some plans and its score, all asked for at once."""
    readings = {plan: reading for plan, reading in measure.together(plans, Stop(keep=1), {}) if reading.score is not None}
    return _with_score(*max(readings.items(), key=lambda pair: pair[1].score or 0.0))


def _with_score(plan: Plan, reading: Reading) -> tuple[Plan, float]:
    assert reading.score is not None
    return plan, reading.score


def raced(subject: Subject, plain: PlainWay, options: argparse.Namespace) -> dict[str, Any]:
    """Time all ways step by step."""
    objective = Divergence(along="right") if options.kl else subject.recipe.objective
    seconds = dict.fromkeys((*WAYS, "plain"), 0.0)
    made = {way: measurement(subject, objective, options.error) for way in WAYS}
    removed: tuple[int, ...] = ()
    count, same = 0, True
    for _ in range(options.steps):
        left = [block for block in range(subject.model.block_count) if block not in removed]
        plans = [Plan.unified(Removal(map(Drop, (*removed, block)))) for block in left]
        found = {}
        for way, best in zip(WAYS, (best_of_whole, best_of_singles, best_of_list), strict=True):
            start = Timed.now()
            found[way] = best(made[way], plans)
            seconds[way] += Timed.since(start).cpu
        chosen = spread(left, options.sampled)
        for block in chosen:
            _, taken = plain.measure([*removed, block])
            seconds["plain"] += taken.cpu * len(left) / len(chosen)
        same &= len({plan for plan, _ in found.values()}) == 1
        count += len(plans)
        removed = tuple(block for element in found[WAYS[-1]][0].decode for block in element.blocks)
    return {
        "plans": count,
        "seconds": seconds,
        "ratios": {way: seconds["plain"] / seconds[way] for way in WAYS},
        "same": same,
        "removed": removed,
    }


def main() -> None:
    """Race all ways, and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=64)
    parser.add_argument("--steps", type=int, default=2, help="blocks that are removed (default: %(default)s)")
    parser.add_argument("--sampled", type=int, default=4, help="plans a step in the plain way (default: %(default)s)")
    parser.add_argument("--kl", action="store_true", help="measure KL to the dense model along right answers instead")
    parser.add_argument("--error", type=float, default=0.0, help="how often a plan may be given up wrongly (default: never)")
    options = parser.parse_args()
    subject = open_subject(options, held_out=2)
    plain = PlainWay(subject.model, subject.samples, subject.calibration.items, batch_size=options.batch_size)
    figures = raced(subject, plain, options)
    for way, ratio in figures["ratios"].items():
        print(f"{way}: {figures['seconds'][way]:.1f} s for {figures['plans']} plans, {ratio:.1f} x the plain way")
    measured = "KL along right answers" if options.kl else options.objective
    told = f"{measured}, wrong with {options.error:.0%} at most" if options.error else measured
    about = {"benchmark": "plan_lists", "items": subject.items, "dtype": options.dtype, "objective": told}
    write(options.json, subject.environment, {**about, **figures})
    if not options.error and not figures["same"]:
        sys.exit("all ways must find the same removal, and they do not")


if __name__ == "__main__":
    main()
