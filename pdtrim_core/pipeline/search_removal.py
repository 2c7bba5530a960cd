"""Finding decode's removal by a search: score the blocks, merge pairs, choose two sets, and search over them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from pdtrim_core.data.scores import Scores
from pdtrim_core.model.weights import MODULES
from pdtrim_core.pipeline.estimated_recovery import estimated_recovery
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.measured_model import ModuleSet
from pdtrim_core.pipeline.measurements import Bench, open_bench
from pdtrim_core.pipeline.merge_pairs import Choice, MergePairs
from pdtrim_core.pipeline.prepare import score, threshold_of
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs, with_training
from pdtrim_core.pipeline.run_keys import keys_of
from pdtrim_core.pipeline.search_and_split import expected, search
from pdtrim_core.pipeline.steps import merges_first
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult, Sets
from pdtrim_core.search.space import TwoSets


@dataclass(frozen=True, kw_only=True)
class SearchedRemoval(FoundRemoval):
    """What a searcher found; the run trained its merges."""

    merge_pairs: MergePairs

    def merge_results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, with its pair score."""
        return self.merge_pairs.results(plan, self.modules)

    def save(self, plan: Plan, out: Path) -> None:
        """Write the merged blocks of a plan, each with how it came out."""
        self.merge_pairs.training.save(plan, out / MODULES)


def search_removal(context: RunContext, inputs: RunInputs) -> SearchedRemoval:
    """Let the recipe's searcher find what decode loses, over blocks that are scored and pairs that are merged."""
    with context.events.step("score the blocks"):
        scores = _scores(context, inputs)
        threshold = threshold_of(context.recipe, scores)
    pairs = MergePairs(context, inputs, scores, threshold)
    with context.events.step("merge pairs") if merges_first(context.recipe) else nullcontext():
        choice = pairs.choose()
    decides = bool(choice.module_set.modules)
    environment = with_training(context, inputs.environment, pairs.training.digest, decides=decides)
    searched = _search(context, inputs, pairs, choice)
    return SearchedRemoval(
        plan=searched.plan,
        costs=searched.choice.space.costs,
        bench=searched.bench,
        modules=searched.module_set.modules,
        environment=environment,
        scores=scores,
        sets=_sets(searched.choice.sets, threshold),
        merge_pairs=pairs,
    )


class _Searched(NamedTuple):
    """A plan that a search found, over which choice, and the trained modules with the bench that measures them."""

    plan: Plan
    choice: Choice
    module_set: ModuleSet
    bench: Bench


def _search(context: RunContext, inputs: RunInputs, pairs: MergePairs, choice: Choice) -> _Searched:
    """Search; where training waited for it, train the merges of the plan that was found.

    Should one be no better than a drop, its blocks become drops, and the search is done again over other sets.
    """
    estimated = estimated_recovery(context, inputs)
    while True:
        bench = open_bench(context, inputs, replace(choice.module_set, estimated=estimated))
        with context.events.step("search", about=expected(context, context.recipe.searcher, choice.space)):
            plan = search(context, bench, choice.space)
        if choice.module_set.trained:
            return _Searched(plan, choice, choice.module_set, bench)
        with context.events.step("merge the chosen pairs"):
            trained = pairs.train_chosen(plan)
            if trained is not None:
                return _Searched(plan, choice, trained, open_bench(context, inputs, replace(trained, estimated=estimated)))
            choice = pairs.choose()


def _scores(context: RunContext, inputs: RunInputs) -> Scores:
    recipe, host = context.recipe, context.host
    scores = context.cache.latest("scores", keys_of(recipe).scores, lambda: score(recipe, host, inputs.model, inputs.calibration))
    context.folder.write("scores.json", scores.to_json())
    return scores


def _sets(sets: TwoSets, threshold: float) -> Sets:
    """Return the two sets as an outcome has them; no pairs, no threshold."""
    pairs = tuple((pair.blocks[0], pair.blocks[1]) for pair in sets.pairs)
    return Sets(sets.initial, pairs, sets.drops, threshold if math.isfinite(threshold) else None)
