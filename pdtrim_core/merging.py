"""The merging step of a run: train the pairs of D, throw out those that are worse than a drop, and choose the sets anew."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from torch import nn

from pdtrim_core.calibration import Calibration
from pdtrim_core.elements import Merge, Shrink
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.files import cache_folder
from pdtrim_core.merges import SEQUENCE_TOKENS, MergeStore, TrainedMerge
from pdtrim_core.model import BlockModel
from pdtrim_core.module_store import path_of
from pdtrim_core.outcome import MergeResult
from pdtrim_core.plan import Plan
from pdtrim_core.space import TwoSets, two_sets

if TYPE_CHECKING:
    from pdtrim_core.plugins import PluginHost
    from pdtrim_core.recipe import Recipe
    from pdtrim_core.run_log import RunLog
    from pdtrim_core.scores import Scores


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
        self._recipe = recipe
        self._host = host
        self._model = model
        self._calibration = calibration
        self.scores = scores
        self.count = count
        self.threshold = threshold
        self._store: MergeStore | None = None
        self._trained: dict[Merge, tuple[nn.Module, TrainedMerge]] = {}
        self._never: set[tuple[int, ...]] = set()
        self.put_off = False
        self.modules: dict[Merge | Shrink, nn.Module] = {}

    @property
    def digest(self) -> str:
        """A hash of the training tokens; empty where nothing was trained."""
        return self._store.digest if self._store else ""

    def choose(self, log: RunLog) -> TwoSets:
        """Return the two sets, with merges that are trained and worth it.

        A merge that ends farther from the dense model than dropping one of its blocks leaves D: its blocks become drops,
        and the sets are chosen again. Where training is put off until the search is over, nothing is trained here.
        """
        after = self._recipe.distiller.train == "after-search"
        while True:
            sets = two_sets(self.scores, self.count, self.threshold, never=self._never)
            pairs = [self._of(pair) for pair in sets.pairs]
            if after or self.train(pairs, log):
                break
        if self.threshold <= 1 and self.scores.pair and not sets.pairs:
            log.note(f"no pair is worth merging at merge_above = {self.threshold:g}: every block is searched as a drop")
        self.put_off = after and bool(pairs)
        self.modules = {merge: self._model.blocks[merge.keep] if after else self._trained[merge][0] for merge in pairs}
        return TwoSets(sets.initial, tuple(pairs), sets.drops)

    def train_chosen(self, plan: Plan, log: RunLog) -> bool:
        """Train the merges of a plan, which had been put off; tell whether all are worth it.

        Then they are what `modules` has. Otherwise choose the sets again, and search again.
        """
        pairs = [element for element in plan.decode if isinstance(element, Merge)]
        if not self.train(pairs, log):
            return False
        self.put_off = False
        self.modules = {merge: self._trained[merge][0] for merge in pairs}
        return True

    def train(self, pairs: Sequence[Merge], log: RunLog) -> bool:
        """Train merges, or find them among the trained ones; tell whether all are worth it. The others are never chosen again."""
        fresh = [str(merge) for merge in pairs if merge not in self._trained]
        if fresh:
            log.preview(f"merges: {len(fresh)} pairs to train, or to find among the trained ones: {', '.join(fresh)}")
        bad = [merge for merge in pairs if not self._train(merge, log).worthwhile]
        if bad:
            log.note(f"merges that are worse than a drop leave the search: {', '.join(str(merge) for merge in bad)}")
        self._never |= {merge.blocks for merge in bad}
        return not bad

    def _of(self, pair: Merge) -> Merge:
        return self._open().merge_of(pair)

    def _train(self, merge: Merge, log: RunLog) -> TrainedMerge:
        if merge not in self._trained:
            self._trained[merge] = self._open().trained(merge)
            record = self._trained[merge][1]
            if record.losses[-1] > record.losses[0]:
                log.note(
                    f"merge {merge}: its training loss rose from {record.losses[0]:.4g} to {record.losses[-1]:.4g}; a smaller "
                    "distiller.lr may help"
                )
            self._host.tell("pdtrim_merge_trained", merge=merge, trained=record.trained, untrained=record.untrained)
        return self._trained[merge][1]

    def _open(self) -> MergeStore:
        if self._store is None:
            distiller = self._recipe.distiller
            label = self._host.label_of(distiller)
            self._store = MergeStore(self._model, distiller, self._sequences(), cache_folder() / "merges", label=label)
        return self._store

    def _sequences(self) -> list[tuple[int, ...]]:
        """Return training tokens in sequences of one length; texts that also measure are left out (see `Calibration.holds`)."""
        source = self._recipe.calibration
        rng = Random(f"{self._recipe.settings.seed} training")  # noqa: S311 - reproducible draws, nothing secret
        wanted = self._recipe.distiller.tokens
        tokens: list[int] = []
        with blame(self._host.label_of(source)):
            for text in source.training_texts(rng):
                if not self._calibration.holds(text):
                    tokens.extend(self._model.tokenizer(text)["input_ids"])
                if len(tokens) >= wanted:
                    break
        if len(tokens) < SEQUENCE_TOKENS:
            raise PdtrimError(
                f"calibration '{source.name}' gave {len(tokens)} training tokens, too few to merge blocks: give it more text, or "
                "say merge_above = 1.1"
            )
        whole = range(0, min(len(tokens), wanted) - SEQUENCE_TOKENS + 1, SEQUENCE_TOKENS)
        return [tuple(tokens[start : start + SEQUENCE_TOKENS]) for start in whole]

    def results(self, plan: Plan) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, by its blocks, and whether the plan has it."""
        return tuple(
            MergeResult(
                pair=(merge.blocks[0], merge.blocks[1]),
                score=self.scores.pair[merge.blocks[0]],
                untrained=record.untrained,
                trained=record.trained,
                drop=min(record.drop_first, record.drop_second),
                kept=merge in self.modules,
                chosen=merge in plan.decode,
            )
            for merge, (_, record) in sorted(self._trained.items(), key=lambda entry: entry[0].blocks)
        )

    def save(self, plan: Plan, folder: Path) -> None:
        """Write the merged blocks of a plan into the run folder, beside the plan that needs them."""
        for merge in plan.decode:
            if isinstance(merge, Merge):
                self._open().copy(merge, path_of(merge, folder))
