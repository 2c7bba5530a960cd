"""Searchers and splitters on a table of numbers: the same on every machine, with a model only for those that need one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.plan_kinds import Searcher, StageSplitter
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.readings import DIGITS, Candidate, Reading, Score
from pdtrim_core.data.scores import Scores
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.driver import BestPlan, Ledger, Measure, drive, drive_split
from pdtrim_core.search.out_of_time import OutOfTime, completed
from pdtrim_core.search.space import search_space, two_sets, without_merges
from pdtrim_core.testing.contracts.shared import no_global_randomness, rng_of
from pdtrim_core.testing.models import tiny_llama

BLOCKS = 6
ENOUGH_ASKS = 20_000
"""A search over six blocks that requests more plans is taken for one that never ends."""


@dataclass(frozen=True)
class Table:
    """A `Measure` without a model: `value` gives the score of a plan.

    All four items of a reading have the same value, so that no gain has a standard error.
    """

    value: Callable[[Plan], float]
    early_stop: bool = True

    def __call__(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        """Return the plan's reading, or one that was cut short where the floor is out of reach."""
        del started
        score = round(self.value(plan), DIGITS)
        if self.early_stop and floor is not None and score < floor:
            return Reading(None, None, ceiling=score)
        return score_of(score).reading


def score_of(value: float) -> Score:
    """Return a score of this value with a reading behind it, all of whose items are alike."""
    return Score(Reading(value, value / 100, (value / 100,) * 4, slope=100.0, ceiling=value))


def rugged(plan: Plan) -> float:
    """Return a random score, but always the same one for a plan."""
    return Random(str(plan)).uniform(0, 100)  # noqa: S311 - a table of numbers, nothing secret


def table_space(count: int, *, merge_threshold: float | None = None) -> SearchSpace:
    """Return a search space over six blocks of which `count` go; `merge_threshold` None leaves out the merges."""
    block = (0.5, 0.8, 0.9, 0.95, 0.97, 0.7)
    scores = Scores(block, tuple((a + b) / 2 for a, b in pairwise(block)), similarity=True)
    sets = two_sets(scores, count, 1.1 if merge_threshold is None else merge_threshold)
    sets = without_merges(sets, scores) if merge_threshold is None else sets
    part = BlockSizes(parameters=100, active=100, kv_parameters=20, kv_width=8, attention_width=8)
    sizes = ModelSizes(blocks=(part,) * BLOCKS, parameters=800, head=200, bytes_per_number=4)
    return search_space(scores, count, sets, CostModel(BLOCKS, sizes))


def table_spaces() -> Iterator[SearchSpace]:
    """Yield spaces in which no block, one, some and all blocks but one go, the last one with merges."""
    yield from (table_space(count) for count in (0, 1, 3, BLOCKS - 1))
    yield table_space(3, merge_threshold=0.8)


def search_on_table(
    searcher: Searcher, space: SearchSpace, measure: Measure, *, seed: int = 0
) -> tuple[BestPlan | None, list[Plan]]:
    """Run a searcher on a table; return the best that it found and all plans that it proposed, in order; probes are none."""
    proposed: list[Plan] = []
    ledger = Ledger(measure, notify=_note_in([]))

    def listed(plan: Plan) -> tuple[str, ...]:
        proposed.append(plan)
        return ()

    with no_global_randomness():
        requests = searcher.search(space, rng_of(seed))
        found, _ = drive(requests, ledger, label=f"searcher '{searcher.name}'", problems=listed)
    return found, proposed


def stopped_on_table(searcher: Searcher, space: SearchSpace, measure: Measure, *, after: int, seed: int = 0) -> Plan:
    """Run a searcher on a table, and stop it once so many plans are measured; return the plan that a run then has.

    Raises `PdtrimError` where it has none.
    """
    ledger = Ledger(measure, notify=_note_in([]))
    with no_global_randomness(), ledger.limited(lambda: ledger.tally.measured + ledger.tally.cut_short >= after):
        try:
            found, _ = drive(searcher.search(space, rng_of(seed)), ledger, label=f"searcher '{searcher.name}'")
        except OutOfTime as stopped:
            return stopped.best or completed(stopped, space, searcher.prefill_ceiling)
    assert found is not None, "it requested no plan"
    return found.plan


def split_on_table(
    splitter: StageSplitter,
    removal: Removal,
    measure: Measure,
    *,
    seed: int = 0,
    note: Callable[[str], None] = lambda text: None,
    model: BlockModel | None = None,
) -> tuple[Plan, list[Plan]]:
    """Run a splitter on a table; return the final plan and all plans that it requested, in order.

    `model` is what a splitter that needs one is given; a tiny one if left out.
    """
    requested: list[Plan] = []
    ledger = Ledger(measure, notify=_note_in(requested))
    costs = table_space(removal.blocks_removed).costs
    costs = replace(costs, model=model or tiny_llama()) if splitter.needs_model else costs
    with no_global_randomness():
        given = Plan.unified(removal)
        requests = splitter.split(given, costs, rng_of(seed))
        plan = drive_split(requests, ledger, given, label=f"splitter '{splitter.name}'", note=note)
    return plan, requested


def _note_in(requested: list[Plan]) -> Callable[[Candidate], None]:
    def notify(candidate: Candidate) -> None:
        requested.append(candidate.plan)
        assert len(requested) <= ENOUGH_ASKS, f"it requested {ENOUGH_ASKS} plans and has not come to an end"

    return notify
