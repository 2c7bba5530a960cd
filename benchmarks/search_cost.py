"""How many candidates a second a search measures, against the plain way, over the plans that annealing visits.

    python benchmarks/search_cost.py [--dtype bfloat16] [--compile] [--data DIR] [--plans 12] [--json FILE]

The search is the real one: annealing with the paper's values, five blocks, every value it is told from our measurement. Each
plan that it visits is measured three times, in turn, so that a machine that slows down slows all of them:

ours    as the search measures it, with the floor that the search gives: measuring stops once it cannot be reached
theirs  the plain way: a physically pruned copy in lm-evaluation-harness' `HFLM.loglikelihood`. Its batch size is 16 rows of
        one choice each (`--batch-size`: 8 and 32 are no faster over all on the machines tried), ours is pdtrim-core's default
        of 512 tokens, or 1024 in bfloat16, which is about as many. Making the copy is not counted; encoding the texts is,
        about 1 percent
whole   ours again, without a floor and on streams of its own, for the values: in float32 they must be theirs, item by item

Both use one thread. Once a run ours checks that choices can share a row, lays out the batches and runs the dense model: this
is `once`, and the table shows the ratio without it and with it spread over the plans. With `--compile` the blocks that ours
runs are compiled in it. Exit code 1: in float32 an accuracy differed.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from plain_way import PlainWay, Timed
from subject import COUNT, Subject, add_options, open_subject, write
from torch import nn

from pdtrim_core import Plan
from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.data.readings import Reading
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.pipeline.prepare import score
from pdtrim_core.search.driver import Ledger, drive
from pdtrim_core.search.space import search_space, two_sets
from pdtrim_core.search.stopping import Stop

NO_MERGES = 1.1
ROUNDING = 1e-2
"""Values of an item that lie farther apart than this differ: accuracies are 0 or 1, margins (nats) sums of float32 numbers."""


@dataclass
class Visit:
    """One plan that the search measured; times are None where this plan was left out of a sample."""

    plan: Plan
    cut_short: bool
    ours: Timed
    theirs: Timed | None = None
    whole: Timed | None = None
    score: tuple[float, float] = (0.0, 0.0)
    other_items: int = 0


@dataclass
class Race:
    """Measures for the search, and what it measures once more both ways."""

    subject: Subject
    plain: PlainWay
    every: int
    visits: list[Visit] = field(default_factory=list)

    def __post_init__(self) -> None:
        start = Timed.now()
        evaluation, items = self.subject.recipe.settings.evaluation, self.subject.calibration.items
        packed = packing_agrees(self.subject.model, items, batch_tokens=evaluation.batch_tokens)
        prefix_caches = [
            PrefixCache(self.subject.model, ExecutionOptions(batch_tokens=evaluation.batch_tokens, packed=packed))
            for _ in range(2)
        ]
        self._measure, self.whole = (self._measurement(prefix_cache) for prefix_cache in prefix_caches)
        self._measure(Plan(), None, None)
        self.once = Timed.since(start)
        self.whole(Plan(), None, None)

    def _measurement(self, prefix_cache: PrefixCache) -> Measurement:
        objective = ObjectiveOnItems(self.subject.recipe.objective, self.subject.calibration.items, "the objective")
        return Measurement(lambda: prefix_cache, objective)

    def __call__(self, plans: Sequence[Plan], stop: Stop, started: Mapping[Plan, Reading]) -> Iterator[tuple[Plan, Reading]]:
        """Yield the readings that the search asked for; this is what its ledger calls."""
        for plan in plans:
            start = Timed.now()
            *_, (_, reading) = self._measure.together([plan], stop, started)
            visit = Visit(plan, reading.score is None, Timed.since(start))
            if len(self.visits) % self.every == 0:
                self._compare(visit)
            self.visits.append(visit)
            yield plan, reading

    def _compare(self, visit: Visit) -> None:
        objective = self.subject.recipe.objective
        sums, visit.theirs = self.plain.measure([block for element in visit.plan.decode for block in element.blocks])
        start = Timed.now()
        whole = self.whole(visit.plan, None, None)
        visit.whole = Timed.since(start)
        values = self.plain.values(objective, sums)
        assert whole.score is not None
        visit.score = (whole.score, objective.score(sum(values) / len(values)))
        visit.other_items = sum(
            abs(one - other) > 1e-3 for one, other in zip(whole.items, values, strict=True) if one is not None
        )
        told = "stopped" if visit.cut_short else "whole"
        print(
            f"{len(self.visits) + 1:3} {visit.plan.decode!s:24} ours {visit.ours.wall:6.2f} s ({told}), theirs "
            f"{visit.theirs.wall:6.2f} s, whole {visit.whole.wall:6.2f} s; points {visit.score[0]:.2f} and "
            f"{visit.score[1]:.2f}, {visit.other_items} items differ",
            flush=True,
        )


def walk(subject: Subject, race: Race) -> None:
    """Let the recipe's searcher walk, as a run does."""
    scores = score(subject.recipe, subject.host, subject.model, subject.calibration)
    space = search_space(
        scores, COUNT, two_sets(scores, COUNT, NO_MERGES), CostModel(subject.model.block_count, subject.model.sizes)
    )
    rng = Random(f"{subject.recipe.settings.seed} search")
    ledger = Ledger(race.whole, together=race)
    drive(subject.recipe.searcher.search(space, rng), ledger, label="the searcher", problems=space.problems)


def figures_of(race: Race) -> dict[str, Any]:
    """Return candidates a second of each way over the plans that all three measured, and their ratios."""
    visits = [visit for visit in race.visits if visit.theirs and visit.whole]
    found: dict[str, Any] = {}
    for clock in ("wall", "cpu"):
        ours, theirs, whole = (sum(getattr(getattr(v, way), clock) for v in visits) for way in ("ours", "theirs", "whole"))
        once = getattr(race.once, clock) * len(visits) / len(race.visits)
        found[clock] = {
            "ours": len(visits) / ours,
            "theirs": len(visits) / theirs,
            "whole": len(visits) / whole,
            "ratio": theirs / ours,
            "ratio_with_once": theirs / (ours + once),
            "ratio_whole": theirs / whole,
        }
    return {
        **{key: found["wall"][key] for key in ("ratio", "ours", "theirs", "whole", "ratio_with_once", "ratio_whole")},
        "cpu": found["cpu"],
        "once_seconds": race.once.wall,
        "visited": len(race.visits),
        "compared": len(visits),
        "cut_short": sum(visit.cut_short for visit in visits),
        "points_differ": sum(abs(visit.score[0] - visit.score[1]) > ROUNDING for visit in visits),
        "items_differ": sum(visit.other_items for visit in visits),
    }


def shares_of(subject: Subject, plan: Plan) -> dict[str, float]:
    """Return where the time goes of a candidate that nothing is kept for: what is no matrix product could be saved at best."""
    model, clock = subject.model, Clock()
    model.compiles = False  # compiled blocks are not told apart into their parts
    clock.watch("products", [part for block in model.blocks for part in block.modules() if isinstance(part, nn.Linear)])
    clock.watch("blocks", model.blocks)
    clock.watch("head", [model.model.get_output_embeddings()])
    prefix_cache = PrefixCache(model, ExecutionOptions(packed=True, reuse_plans=False))
    StagedModel(prefix_cache, plan).loglikelihoods(subject.calibration.items)
    clock.seconds.clear()
    start = Timed.now()
    StagedModel(prefix_cache, plan).loglikelihoods(subject.calibration.items)
    whole = Timed.since(start).cpu
    clock.stop()
    products, blocks, head = (clock.seconds[name] for name in ("products", "blocks", "head"))
    return {
        "matrix products of blocks": products / whole,
        "rest of blocks": (blocks - products) / whole,
        "matrix product of the head": head / whole,
        "the rest": (whole - blocks - head) / whole,
    }


class Clock:
    """Adds up the seconds that modules take."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._hooks: list[Any] = []

    def watch(self, name: str, modules: Iterable[nn.Module]) -> None:
        """Add the time of some modules, of which none is inside another, under a name."""

        def begin(*_: Any) -> None:
            self.seconds[name] -= time.process_time()

        def end(*_: Any) -> None:
            self.seconds[name] += time.process_time()

        for module in modules:
            self._hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]

    def stop(self) -> None:
        for hook in self._hooks:
            hook.remove()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, samples=128)
    parser.add_argument("--plans", type=int, help="measure about so many of the plans, evenly spaced (default: all)")
    options = parser.parse_args()
    subject = open_subject(options, held_out=2)
    print(subject.items)
    plain = PlainWay(subject.model, subject.samples, subject.calibration.items, batch_size=options.batch_size)
    every = max(1, 30 // options.plans) if options.plans else 1
    race = Race(subject, plain, every)
    walk(subject, race)
    figures = {
        "benchmark": "search_cost",
        **figures_of(race),
        "items": subject.items,
        "dtype": options.dtype,
        "compiled": options.compile,
        "objective": subject.recipe.objective.name,
        "shares": shares_of(subject, race.visits[len(race.visits) // 2].plan),
        "batch_size": options.batch_size,
    }
    print_table(figures)
    write(options.json, subject.environment, figures)
    if options.dtype == "float32" and (figures["points_differ"] or figures["items_differ"]):
        sys.exit("in float32 both ways must give the same values, and they do not")


def print_table(figures: dict[str, Any]) -> None:
    cpu = figures["cpu"]
    of = f"{figures['compared']} of the {figures['visited']} plans visited"
    print(f"\n{of}, {figures['dtype']}, done once: {figures['once_seconds']:.1f} s")
    print(f"{'':34}{'clock':>9}{'processor':>11}")
    for key, label in (
        ("ours", "ours, candidates a second"),
        ("theirs", "theirs, candidates a second"),
        ("ratio", "ratio"),
        ("ratio_with_once", "ratio with what is done once"),
        ("ratio_whole", "ratio, every plan measured whole"),
    ):
        print(f"{label:34}{figures[key]:9.2f}{cpu[key]:11.2f}")
    print(
        f"{figures['cut_short']} plans stopped early; values that differ: {figures['points_differ']}, of single items: ", end=""
    )
    print(figures["items_differ"])
    print("where a candidate's time goes:", ", ".join(f"{part} {share:.0%}" for part, share in figures["shares"].items()))


if __name__ == "__main__":
    main()
