"""The merging step of a run: train the pairs of D, throw out those that are worse than a drop, and choose the sets anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import nn

from pdtrim_core.data.items import Calibration
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import MODULES
from pdtrim_core.pipeline.train_merges import Training
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult
from pdtrim_core.search.space import TwoSets, two_sets

if TYPE_CHECKING:
    from pdtrim_core.data.scores import Scores
    from pdtrim_core.host.host import PluginHost
    from pdtrim_core.pipeline.events import RunEvents
    from pdtrim_core.recipe.recipe import Recipe


class Merges:
    """The merged blocks of one run. `modules` has those that a search may choose, trained or not.

    While `put_off` holds, they are the blocks that training would start from.
    """

    def __init__(  # noqa: PLR0913 - what a run has put together until here
        self,
        recipe: Recipe,
        host: PluginHost,
        model: BlockModel,
        calibration: Calibration,
        *,
        scores: Scores,
        count: int,
        threshold: float,
    ) -> None:
        self._after = recipe.distiller.train == "after-search"
        self._model = model
        self._training = Training(recipe, host, model, calibration, otherwise="say prune.merges = false")
        self.scores = scores
        self.count = count
        self.threshold = threshold
        self._never: set[tuple[int, ...]] = set()
        self.put_off = False
        self.modules: dict[Merge | Shrink, nn.Module] = {}

    @property
    def digest(self) -> str:
        """A hash of the training tokens; empty where nothing was trained."""
        return self._training.digest

    def choose(self, log: RunEvents) -> TwoSets:
        """Return the two sets, with merges that are trained and worth it.

        A merge that ends farther from the dense model than dropping one of its blocks leaves D: its blocks become drops,
        and the sets are chosen again. Where training is put off until the search is over, nothing is trained here.
        """
        while True:
            sets = two_sets(self.scores, self.count, self.threshold, never=self._never)
            pairs = [self._training.merge_of(pair) for pair in sets.pairs]
            if self._after or self.train(pairs, log):
                break
        if self.threshold <= 1 and self.scores.pair and not sets.pairs:
            log.note(f"no pair is worth merging at prune.merge_threshold = {self.threshold:g}: every block is searched as a drop")
        self.put_off = self._after and bool(pairs)
        trained = self._training.modules
        self.modules = {merge: self._model.blocks[merge.keep] if self._after else trained[merge] for merge in pairs}
        return TwoSets(sets.initial, tuple(pairs), sets.drops)

    def train_chosen(self, plan: Plan, log: RunEvents) -> bool:
        """Train the merges of a plan, which had been put off; tell whether all are worth it.

        Then they are what `modules` has. Otherwise choose the sets again, and search again.
        """
        pairs = [element for element in plan.decode if isinstance(element, Merge)]
        if not self.train(pairs, log):
            return False
        self.put_off = False
        self.modules = {merge: self._training.modules[merge] for merge in pairs}
        return True

    def train(self, pairs: Sequence[Merge], log: RunEvents) -> bool:
        """Train merges, or find them among the trained ones; tell whether all are worth it. The others are never chosen again."""
        fresh = [str(merge) for merge in pairs if merge not in self._training.modules]
        if fresh:
            log.preview(f"merges: {len(fresh)} pairs to train, or to find among the trained ones: {', '.join(fresh)}")
        bad = [merge for merge in pairs if not self._training.train(merge, log.note).worthwhile]
        if bad:
            log.note(f"merges that are worse than a drop leave the search: {', '.join(str(merge) for merge in bad)}")
        self._never |= {merge.blocks for merge in bad}
        return not bad

    def results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, by its blocks, and whether the plan has it."""
        return self._training.results(plan, kept=self.modules, score_of=lambda merge: self.scores.pair[merge.blocks[0]])

    def save(self, plan: Plan, dense: BlockModel, out: Path) -> None:
        """Write the merged blocks of a plan into the run folder, beside the plan that needs them."""
        del dense
        self._training.save(plan, out / MODULES)
