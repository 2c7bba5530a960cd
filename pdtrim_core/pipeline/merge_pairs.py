"""The merging step of a run: train the pairs of D, throw out those that are no better than a drop, choose the sets anew."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.pipeline.measured_model import ModuleSet
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs, cost_model
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.plan.elements import Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult
from pdtrim_core.search.space import TwoSets, part_space, search_space, two_sets
from pdtrim_core.wording import counted, shortened


@dataclass(frozen=True)
class Choice:
    """The two sets, the space that a search has over them, and the modules of their merges."""

    sets: TwoSets
    space: SearchSpace
    module_set: ModuleSet


class MergePairs:
    """Chooses which pairs of blocks a search may merge, and trains them: before the search, or those that it chose."""

    def __init__(self, context: RunContext, inputs: RunInputs, scores: Scores, threshold: float) -> None:
        self._events = context.events
        self._recipe = context.recipe
        self._splitter = context.host.label_of(context.recipe.splitter)
        self._inputs = inputs
        self._scores = scores
        self._threshold = threshold
        self._after_search = context.recipe.distiller.train == "after-search"
        self._costs = cost_model(context, inputs.model)
        self._never: set[tuple[int, ...]] = set()
        self.training = Training(context, inputs, otherwise="say prune.merges = false")

    def choose(self) -> Choice:
        """Return the two sets, with merges that are trained and better than a drop.

        A merge that ends no nearer to the dense model than dropping one of its blocks leaves D: its blocks become drops,
        and the sets are chosen again. Where merges are trained after the search, nothing is trained here, and the search
        measures pairs with the blocks that training will start from.
        """
        while True:
            sets = two_sets(self._scores, self._inputs.blocks, self._threshold, never=self._never)
            pairs = [self.training.merge_of(pair) for pair in sets.pairs]
            if self._after_search or self._train(pairs):
                break
        if self._threshold <= 1 and self._scores.pair and not sets.pairs:
            what = f"no pair is worth merging at prune.merge_threshold = {self._threshold:g}"
            self._events.note(f"{what}: every block is searched as a drop")
        sets = TwoSets(sets.initial, tuple(pairs), sets.drops)
        if self._recipe.settings.prune.parts:
            space = part_space(self._scores, self._inputs.blocks, self._costs, plan_of=self._plan_of)
        else:
            space = search_space(self._scores, self._inputs.blocks, sets, self._costs, plan_of=self._plan_of)
        return Choice(sets, space, self._untrained(pairs) if self._after_search and pairs else self._trained(pairs))

    def _plan_of(self, decode: Removal) -> Plan:
        """Return the plan by which a removal from decode is measured: with the splitter's prefill, where that is known."""
        if not self._recipe.settings.search.under_splitter:
            return Plan.unified(decode)
        with blame(self._splitter):
            plan = self._recipe.splitter.plan_for(decode, self._costs)
        if plan is not None and (not isinstance(plan, Plan) or plan.decode != decode):
            raise PluginError(
                f"{self._splitter}: plan_for returned {shortened(str(plan))} for decode {decode}: it must return a plan "
                "with this decode, or None"
            )
        return Plan.unified(decode) if plan is None else plan

    def train_chosen(self, plan: Plan) -> ModuleSet | None:
        """Train the merges of a plan that a search found untrained; return them.

        None where one is no better than a drop: then the sets are to be chosen again, and searched again.
        """
        pairs = [element for element in plan.decode if isinstance(element, Merge)]
        return self._trained(pairs) if self._train(pairs) else None

    def results(self, plan: Plan, kept: Collection[Merge | Shrink]) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, by its blocks, and whether the plan has it."""
        return self.training.results(plan, kept=kept, score_of=lambda merge: self._scores.pair[merge.blocks[0]])

    def _untrained(self, pairs: Sequence[Merge]) -> ModuleSet:
        blocks = self._inputs.model.blocks
        return ModuleSet({merge: blocks[merge.keep] for merge in pairs}, self.training.digest, trained=False)

    def _trained(self, pairs: Sequence[Merge]) -> ModuleSet:
        return ModuleSet({merge: self.training.modules[merge] for merge in pairs}, self.training.digest)

    def _train(self, pairs: Sequence[Merge]) -> bool:
        """Train merges, or find them trained; tell whether all are better than a drop. Others are not chosen again."""
        fresh = [str(merge) for merge in pairs if merge not in self.training.modules]
        if fresh:
            what = f"merges: {counted(len(fresh), 'pair')} to train, or to find among the trained ones"
            self._events.preview(f"{what}: {', '.join(fresh)}")
        records = self.training.train_all(pairs)
        bad = [record.merge for record in records if not record.worthwhile]
        unmoved = [record.merge for record in records if not record.worthwhile and not record.moved]
        self._note_leaving("that are no better than a drop", [merge for merge in bad if merge not in unmoved])
        self._note_leaving("whose training changed no weight", unmoved)
        self._never |= {merge.blocks for merge in bad}
        return not bad

    def _note_leaving(self, why: str, merges: Sequence[Merge]) -> None:
        if merges:
            self._events.note(f"merges {why} leave the search: {', '.join(str(merge) for merge in merges)}")
