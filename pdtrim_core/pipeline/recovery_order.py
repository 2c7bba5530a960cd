"""Which recovery should have come earlier: one that changes what stands in front of layers that another one has fitted.

What a recovery makes of a layer goes with the hidden states and K/V that come there. That is so whatever a recovery does, so it
is read off the layers that each has changed, and nothing has to be declared.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pdtrim_core.execution.first_tokens import depths_of
from pdtrim_core.execution.recovered_weights import STAGES
from pdtrim_core.execution.stage_modules import Modules, changed_weights, module_of
from pdtrim_core.execution.walked import Walked
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstTokensOf

Place = tuple[Stage, Layer]


class Changed(NamedTuple):
    """The layers of each stage that a recovery changed, with whether what makes their K/V changed.

    `label` is what messages call the recovery; `table` tells whether it made a table of first tokens.
    """

    label: str
    places: Mapping[Place, bool]
    table: bool = False


def changed_by(label: str, pair: Walked, start: Modules) -> Changed:
    """Return what a recovery changed of a pair, of which `start` had the modules before."""
    of_kv = tuple(f"{part}." for part in pair.model.layout.kv)
    places: dict[Place, bool] = {}
    for stage in STAGES:
        for layer in pair.layers(stage):
            before = module_of(pair.model, pair.plan, stage, layer, start)
            names = changed_weights(pair.module(stage, layer), before)
            if names:
                places[stage, layer] = any(name.startswith(of_kv) for name in names)
    table = FirstTokensOf(pair.plan)
    return Changed(label, places, pair.modules.get(table) is not start.get(table))


def order_notes(pair: Walked, earlier: Sequence[Changed], now: Changed) -> Iterator[str]:
    """Yield a sentence for each earlier recovery that fitted layers to what this one has changed in front of them."""
    for before in earlier:
        stale = next((place for place in before.places if place not in now.places and _behind(pair, now, place)), None)
        if stale is not None:
            stage, layer = stale
            yield (
                f"{now.label} changed what comes to block {layer.block} of {stage}, to which {before.label} had fitted that "
                f"block: list {now.label} in front of it, or the other once more behind"
            )


def _behind(pair: Walked, now: Changed, place: Place) -> bool:
    """Tell whether what comes to a layer depends on what a recovery has changed."""
    if any(_feeds(pair, changed, place, kv=kv) for changed, kv in now.places.items()):
        return True
    table = depths_of(pair.plan, pair.model.block_count) if now.table else ()
    runs = [layer.block for layer in pair.layers("prefill") if layer.runs and layer.block in table]
    # Other tokens attend to the first one: in prefill where it runs a block, in decode wherever it reads its K/V.
    stage, layer = place
    reached = table if stage == "decode" else [block + 1 for block in runs]
    return bool(reached) and min(reached) <= layer.block


def _feeds(pair: Walked, changed: Place, place: Place, *, kv: bool) -> bool:
    """Tell whether a changed layer stands in front of another one, or makes K/V (`kv`) that are read there or in front of it."""
    (stage, layer), (other_stage, other) = changed, place
    if stage == other_stage or pair.unified:
        return layer.runs and layer.block < other.block
    # What prefill runs goes into the K/V of its later layers; those of its own block decode reads there.
    return stage == "prefill" and (layer.block < other.block or (kv and layer.block == other.block))
