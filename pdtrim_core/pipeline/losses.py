"""The loss of a removal, as pruners measure it: nats a token over sequences, each measured once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from pdtrim_core.api.item_kinds import Objective
from pdtrim_core.api.prune_context import LossOf
from pdtrim_core.api.requests import Staged
from pdtrim_core.data.items import Item, digest_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.plan.elements import Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.driver import Ledger

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

    def loss_of(sequences: Sequence[Sequence[int]]) -> Callable[[Removal], float]:
        items = [
            Item((tuple(s[:1]),), (tuple(s[1:]),), 0, (len(s) - 1,), f"window {number}")
            for number, s in enumerate(sequences)
            if len(s) > 1
        ]
        if not items:
            raise PdtrimError("there are no sequences of two tokens or more to measure a loss on: give longer samples")
        prefix_cache = PrefixCache(model, options)
        objective = ObjectiveOnItems(_Loss(), items, "the loss of a pruner")
        measurement = Measurement(lambda: prefix_cache, objective, note=note)
        measured = ledger(f"losses {digest_of(items)[:16]}", measurement)

        def loss(removal: Removal) -> float:
            mean = measured.reading(Plan.unified(removal)).mean
            assert mean is not None
            return mean

        return loss

    return loss_of


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
