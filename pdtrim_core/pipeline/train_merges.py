"""The training of a run's merges: the recipe's distiller, on texts that do not measure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

from torch import nn

from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import PdtrimError, blame
from pdtrim_core.files.atomic_files import cache_folder
from pdtrim_core.model.weights import path_of
from pdtrim_core.pipeline.merge_store import SEQUENCE_TOKENS, KeptMerges, MergeStore, TrainedMerge
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import MergeResult

LEAST_FALL = 0.05
"""The share of a merge's error that training should remove at least; below it, it was too little or its steps too small."""


class Training:
    """Trains the merges of one run, each once. `modules` and `records` have those that are trained.

    `otherwise` tells a user whose texts are too few what else to do.
    """

    def __init__(self, context: RunContext, inputs: RunInputs, *, otherwise: str) -> None:
        self._context = context
        self._inputs = inputs
        self._otherwise = otherwise
        self._opened: MergeStore | None = None
        self.modules: dict[Merge, nn.Module] = {}
        self.records: dict[Merge, TrainedMerge] = {}

    @property
    def digest(self) -> str:
        """A hash of the training tokens, see `MergeStore.digest`; empty where no merge was requested."""
        return self._opened.digest if self._opened else ""

    def merge_of(self, merge: Merge) -> Merge:
        """Return the merge as the recipe's distiller makes it; see `MergeStore.merge_of`."""
        return self._store.merge_of(merge)

    def train_all(self, merges: Sequence[Merge]) -> list[TrainedMerge]:
        """Train merges, each as `train` does, and tell listeners how far that is; return how each came out."""
        fresh = [merge for merge in merges if merge not in self.records]
        for number, merge in enumerate(fresh, start=1):
            advanced = partial(self._tell, number, len(fresh))
            advanced(0.0)
            self.train(merge, advanced)
        return [self.records[merge] for merge in merges]

    def _tell(self, number: int, count: int, share: float) -> None:
        """Tell that of so many merges a share of the number-th is done, and those before it."""
        done = (number - 1 + share) / count
        self._context.host.tell("pdtrim_work_advanced", what="merges", number=number, count=count, share=done)

    def train(self, merge: Merge, advanced: Callable[[float], None] = lambda share: None) -> TrainedMerge:
        """Train a merge, or find it among the trained ones; return how it came out. A loss that did not fall is noted.

        `advanced` is told which share of the training is done, where the distiller says how many epochs there are.
        """
        if merge not in self.records:
            epochs = getattr(self._context.recipe.distiller, "epochs", 0)
            each = (lambda done: advanced(min(1.0, done / epochs))) if epochs else (lambda done: None)
            self.modules[merge], record = self._store.trained(merge, each)
            self.records[merge] = record
            for line in self._notes_on(record):
                self._context.events.note(line)
            facts = {"merge": merge, "trained": record.trained, "untrained": record.untrained}
            self._context.host.tell("pdtrim_merge_trained", **facts)
            self._context.spent.save()
        return self.records[merge]

    def _notes_on(self, record: TrainedMerge) -> Iterator[str]:
        """Yield what is to be said of a merge whose loss or error hardly fell; the loss of one epoch alone tells nothing."""
        first, last = record.losses[0], record.losses[-1]
        if last > first:
            yield (
                f"merge {record.merge}: its training loss rose from {first:.4g} to {last:.4g}; a smaller distiller.lr may help"
            )
        elif last == first and len(record.losses) > 1:
            yield f"merge {record.merge}: its training loss did not fall from {first:.4g}: {self._what_to_raise}"
        elif record.trained > (1 - LEAST_FALL) * record.untrained:
            yield (
                f"merge {record.merge}: training lowered its error by less than {100 * LEAST_FALL:g} %, from "
                f"{record.untrained:.4g} to {record.trained:.4g}: {self._what_to_raise}"
            )

    @property
    def _what_to_raise(self) -> str:
        options = [name for name in ("lr", "epochs", "tokens") if name in type(self._context.recipe.distiller).model_fields]
        return f"raise one of {', '.join(f'distiller.{name}' for name in options)}"

    @property
    def _store(self) -> MergeStore:
        if self._opened is None:
            distiller, host = self._context.recipe.distiller, self._context.host
            fresh = self._context.cache.trained if self._context.fresh else None
            kept = KeptMerges(cache_folder() / "merges", fresh, self._context.events.note)
            label, code = host.label_of(distiller), host.source_of(distiller)
            self._opened = MergeStore(self._inputs.model, distiller, self.sequences(), kept, label=label, code=code)
        return self._opened

    def sequences(self) -> list[tuple[int, ...]]:
        """Return training tokens in sequences of one length; texts that also measure are left out (see `Calibration.holds`).

        The texts follow each other without special tokens. Each sequence begins with those that a prompt begins with.
        """
        source, wanted = self._context.recipe.calibration, self._context.recipe.distiller.tokens
        tokenizer = self._inputs.model.tokenizer
        opening = opening_of("text", tokenizer)
        step = SEQUENCE_TOKENS - len(opening)
        wanted -= wanted // SEQUENCE_TOKENS * len(opening)
        tokens: list[int] = []
        with blame(self._context.host.label_of(source)):
            for number, text in enumerate(source.training_texts(self._context.rng("training"))):
                if not self._inputs.calibration.holds(text):
                    of_text = tokens_of(text, tokenizer)
                    # Texts are cut into sequences, so their own length does not matter.
                    self._inputs.model.check_ids(of_text, f"the training text {number} of calibration '{source.name}'")
                    tokens.extend(of_text)
                if len(tokens) >= wanted:
                    break
        if len(tokens) < step:
            raise PdtrimError(
                f"calibration '{source.name}' gave {len(tokens)} training tokens, too few to merge blocks: give it more text, or "
                f"{self._otherwise}"
            )
        positions = self._inputs.model.positions
        if positions is not None and positions < SEQUENCE_TOKENS:
            raise PdtrimError(
                f"merges are trained on sequences of {SEQUENCE_TOKENS} tokens, and {self._inputs.model.name} has learned "
                f"{positions} positions: {self._otherwise}"
            )
        whole = range(0, min(len(tokens), wanted) - step + 1, step)
        return [(*opening, *tokens[start : start + step]) for start in whole]

    def results(
        self, plan: Plan, *, kept: Collection[Merge | Shrink], score_of: Callable[[Merge], float | None]
    ) -> tuple[MergeResult, ...]:
        """Return how each trained merge came out, by its blocks, and whether the plan has it."""
        return tuple(
            MergeResult(
                pair=merge.blocks,
                score=score_of(merge),
                untrained=record.untrained,
                trained=record.trained,
                drop=min(record.drop_first, record.drop_second),
                kept=merge in kept,
                chosen=merge in plan.decode,
            )
            for merge, record in sorted(self.records.items(), key=lambda entry: entry[0].blocks)
        )

    def save(self, plan: Plan, folder: Path) -> None:
        """Write the merged blocks of a plan into a folder, each with how it came out."""
        for merge in plan.decode:
            if isinstance(merge, Merge):
                self._store.copy(merge, path_of(merge, folder))
