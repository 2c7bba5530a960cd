"""What the recipe's recoveries would make of a candidate, estimated from the dense model: so a search finds what recovers well.

A real recovery goes through the pair's own hidden states, which takes seconds to minutes a plan. The estimate takes the dense
model's in their place, which are the same for all candidates; what it makes of a block then depends on that block and on the gap
behind it alone, and candidates share it.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import nn

from pdtrim_core.api.layer_kinds import LayerRecovery
from pdtrim_core.errors import blame
from pdtrim_core.execution.dense_states import DensePlace, DenseStates
from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.execution.stage_walk import WalkedLayer
from pdtrim_core.execution.walked import Walked
from pdtrim_core.host.sources import engine
from pdtrim_core.pipeline.recovery_contract import check_change
from pdtrim_core.pipeline.recovery_texts import CHECKED, RecoveryTexts
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import RunInputs
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import gone_behind
from pdtrim_core.plan.plan import LayerOf, Plan

KEPT_BYTES = 2**30
"""Bytes that estimated weights take at most; those that were not used for the longest time are made again when wanted."""
ESTIMATED = ("run", "kv-only")
"""States of layers that are estimated: what the dense model has at them is known."""


class EstimatedRecovery:
    """The layers that recoveries would give other weights, plan by plan. `digest` is a hash of all that decides about them."""

    def __init__(self, recoveries: Sequence[LayerRecovery], labels: Sequence[str], dense: DenseStates, digest: str) -> None:
        self._recoveries = recoveries
        self._labels = labels
        self._dense = dense
        self._made: OrderedDict[Any, _Made] = OrderedDict()
        self.digest = digest

    def modules(self, plan: Plan) -> dict[LayerOf, nn.Module]:
        """Return the layers of a plan that would have other weights."""
        found: dict[LayerOf, nn.Module] = {}
        stages: tuple[Stage, ...] = ("decode",) if plan.prefill == plan.decode else ("prefill", "decode")
        for stage in stages:
            layers, depth = plan.layers(stage, self._dense.model.block_count), 0
            for number, layer in enumerate(layers):
                gone = gone_behind(layers, number, self._dense.model.block_count)
                if layer.state in ESTIMATED:
                    place = DensePlace(layer, gone, depth if layer.state == "kv-only" else layer.block)
                    found.update(self._found(plan, stage, place))
                if layer.runs:
                    depth = layer.blocks[-1] + 1
        return found

    def _found(self, plan: Plan, stage: Stage, place: DensePlace) -> dict[LayerOf, nn.Module]:
        """Return what a layer would be, if it would be another one."""
        layer = place.layer
        wanting = tuple(number for number in range(len(self._recoveries)) if self._wants(number, stage, place))
        if not wanting:
            return {}
        key = (wanting, layer.block, layer.state, place.gone, place.depth)
        if key not in self._made:
            pair = Walked(self._dense.model, plan, {}, ())
            size = sum(self._change(number, pair, self._dense.layer(pair, stage, place)) for number in wanting)
            self._made[key] = _Made(pair.modules.get(LayerOf.at(plan, stage, layer)), size)
            self._make_room()
        self._made.move_to_end(key)
        module = self._made[key].module
        stages = STAGES if plan.prefill == plan.decode else (stage,)
        return {} if module is None else {LayerOf.at(plan, one, layer): module for one in stages}

    def _wants(self, number: int, stage: Stage, place: DensePlace) -> bool:
        recovery = self._recoveries[number]
        with blame(self._labels[number]):
            return stage in recovery.stages() and recovery.wants(stage, place.layer, place.gone)

    def _change(self, number: int, pair: Walked, layer: WalkedLayer) -> int:
        """Let a recovery change a layer of a pair; return the bytes of its weights."""
        recovery, label, before = self._recoveries[number], self._labels[number], dict(pair.modules)
        with blame(label):
            weights = recovery.weights(layer)
            if weights:
                layer.change(weights)
        check_change(pair, before, recovery.contract, label)
        return sum(weight.nbytes for weight in weights.values())

    def _make_room(self) -> None:
        while len(self._made) > 1 and sum(made.size for made in self._made.values()) > KEPT_BYTES:
            self._made.popitem(last=False)


class _Made(NamedTuple):
    """What a layer would be, None where it stays as it is, and the bytes of its own weights."""

    module: nn.Module | None
    size: int


def estimated_recovery(context: RunContext, inputs: RunInputs) -> EstimatedRecovery | None:
    """Return the estimate by which a recipe's search measures its candidates; None where it measures them as they are."""
    search, data = context.recipe.settings.search, context.recipe.settings.recovery_data
    if not search.recovered:
        return None
    recoveries = [one for one in inputs.recoveries if isinstance(one, LayerRecovery)]
    labels = [context.host.label_of(one) for one in recoveries]
    with context.events.step("estimate recovery"):
        texts = RecoveryTexts(context, inputs).items(CHECKED + math.ceil(search.recovered_tokens / data.text_tokens))
    what = [
        [[one.name, context.host.source_of(one), one.model_dump(mode="json")] for one in recoveries],
        [[text.prompts, text.choices] for text in texts[CHECKED:]],
        engine(),
    ]
    digest = hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
    dense = DenseStates(inputs.model, texts[CHECKED:], context.recipe.settings.evaluation.batch_tokens)
    return EstimatedRecovery(recoveries, labels, dense, digest)
