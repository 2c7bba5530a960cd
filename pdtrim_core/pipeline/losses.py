"""The loss of a removal and its divergence from the dense model, as pruners measure them: nats a token."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pdtrim_core.api.kinds import Objective
from pdtrim_core.api.prune_context import LossOf
from pdtrim_core.api.requests import Staged
from pdtrim_core.data.items import Item, digest_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.objective_value import Measurement, ObjectiveOnItems
from pdtrim_core.plan.elements import Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.driver import Ledger

PARTS = {"loss": "losses", "divergence": "divergences"}
"""The parts of a journal, by what is measured."""
MakeLedger = Callable[[str, Measurement], Ledger]
"""Makes the ledger of a part of the journal, by its name."""


def losses_of(
    model: BlockModel,
    options: ExecutionOptions | None = None,
    *,
    note: Callable[[str], None],
    ledger: MakeLedger = lambda part, measurement: Ledger(measurement),
) -> LossOf:
    """Return what a `PruneContext` measures losses with; see its `loss_of`."""
    return _measured(_Loss, model, options, note, ledger)


def divergences_of(
    model: BlockModel,
    options: ExecutionOptions | None = None,
    *,
    note: Callable[[str], None],
    ledger: MakeLedger = lambda part, measurement: Ledger(measurement),
) -> LossOf:
    """Return what a `PruneContext` measures divergences with; see its `divergence_of`."""
    return _measured(_Divergence, model, options, note, ledger)


def _measured(
    objective: type[Objective],
    model: BlockModel,
    options: ExecutionOptions | None,
    note: Callable[[str], None],
    ledger: MakeLedger,
) -> LossOf:
    name = objective.name

    def mean_of(sequences: Sequence[Sequence[int]]) -> Callable[[Removal], float]:
        items = [
            Item((tuple(s[:1]),), (tuple(s[1:]),), 0, (len(s) - 1,), f"window {number}")
            for number, s in enumerate(sequences)
            if len(s) > 1
        ]
        if not items:
            raise PdtrimError(f"there are no sequences of two tokens or more to measure a {name} on: give longer samples")
        prefix_cache = PrefixCache(model, options)
        on_items = ObjectiveOnItems(objective(), items, f"the {name} of a pruner")
        measurement = Measurement(lambda: prefix_cache, on_items, note=note)
        measured = ledger(f"{PARTS[name]} {digest_of(items)[:16]}", measurement)

        def mean(removal: Removal) -> float:
            found = measured.reading(Plan.unified(removal)).mean
            assert found is not None
            return found

        return mean

    return mean_of


class _Loss(Objective):
    """The negative log-likelihood a token; its score decides nothing."""

    name = "loss"
    unit = "nats a token"

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        sums = staged.loglikelihoods(items)
        if not all(math.isfinite(total) for (total,) in sums):
            assert isinstance(staged, StagedModel)
            raise PdtrimError(
                f"the loss without {staged.plan.decode} is not finite; if the weights are in float16, which overflows early, say "
                'model.dtype = "bfloat16" or "float32"'
            )
        return [-total / len(item.choices[0]) for item, (total,) in zip(items, sums, strict=True)]

    def weight(self, item: Item) -> float:
        return float(len(item.choices[0]))

    def score(self, mean: float) -> float:
        return 100 / (1 + max(0.0, mean))


class _Divergence(Objective):
    """KL(dense || plan) a token; its score decides nothing."""

    name = "divergence"
    unit = "nats a token"

    def item_values(self, staged: Staged, items: Sequence[Item]) -> Sequence[float]:
        return staged.divergences(items, "right")

    def weight(self, item: Item) -> float:
        return float(len(item.choices[0]))

    def score(self, mean: float) -> float:
        return 100 / (1 + max(0.0, mean))
