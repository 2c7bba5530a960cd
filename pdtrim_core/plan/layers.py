"""The layers that a stage has under a plan: what each of them runs, and which layer of decode its K/V feed.

This is the one reading of a plan. Running, exporting and counting costs all follow these layers and look at no element
themselves, so that a new kind of element is added only here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from pdtrim_core.plan.elements import PARTS, KvOnly, Merge, Part, Removal, Shrink, Stage
from pdtrim_core.plan.selections import Selection

LayerState = Literal["run", "shrunk", "no-attention", "no-mlp", "merged", "kv-only", "shadow"]
"""What a layer is: a block of the model, one with fewer heads, channels or experts, one without its attention or its MLP, a
merged block, only the K/V of decode's layer, or the K/V of decode's merged block beside blocks that prefill still runs."""
_WITHOUT: Mapping[Part, LayerState] = {"attention": "no-attention", "mlp": "no-mlp"}


@dataclass(frozen=True)
class Layer:
    """One layer of a stage, in the order in which it runs.

    `blocks` are the blocks of the dense model that it covers; it is placed at the first of them. `like` is the block whose
    mask, layer type and entries of the config it has. `merge`, `shrinks` and `lost`, the part that is gone, say how its weights
    came about: none of them for a block as it is. Of prefill's layers, `kv_slot` is the number, among the layers of decode that
    read K/V, of the one that is fed with this layer's (None where decode has no use for them), and `sliced_heads` are the K/V
    heads that decode leaves out of them, by their numbers in the dense model; see `sliced_places`. `selection` says which tokens
    of a prompt decode's layer reads, None for all; a layer of prefill has that of the decode layer that it feeds.
    """

    blocks: tuple[int, ...]
    state: LayerState
    like: int
    merge: Merge | None = None
    shrinks: tuple[Shrink, ...] = ()
    kv_slot: int | None = None
    sliced_heads: tuple[int, ...] = ()
    selection: Selection | None = None
    lost: Part | None = None

    @property
    def block(self) -> int:
        """The block of the dense model at which this layer is placed."""
        return self.blocks[0]

    @property
    def runs(self) -> bool:
        """Whether the hidden states change here; the other layers compute K/V and hand their input on."""
        return self.state not in ("kv-only", "shadow")

    @property
    def has_kv(self) -> bool:
        """Whether K/V are computed here; a layer of decode that has none reads none."""
        return self.lost != "attention"

    @property
    def removed_kv_heads(self) -> tuple[int, ...]:
        """The K/V heads of the dense block that this layer does not have."""
        return next((shrink.units for shrink in self.shrinks if shrink.part == "attention"), ())

    @property
    def sliced_places(self) -> tuple[int, ...]:
        """The places of the sliced heads among the K/V heads that this layer has."""
        return tuple(head - sum(lost < head for lost in self.removed_kv_heads) for head in self.sliced_heads)


def layers_of(prefill: Removal, decode: Removal, stage: Stage, block_count: int) -> tuple[Layer, ...]:
    """Return the layers of one stage of a lawful plan on a model of so many blocks, in the order in which they run."""
    decode_layers = tuple(_left_by(decode, block_count))
    return decode_layers if stage == "decode" else tuple(_feeding(decode_layers, _left_by(prefill, block_count)))


def gone_behind(layers: Sequence[Layer], number: int, block_count: int) -> range:
    """Return the blocks of the dense model that are gone between a layer of a stage, by its number, and what the stage runs next.

    Where nothing runs behind it, they end at the next layer, which computes K/V, or at the end of the model.
    """
    behind = layers[number + 1 :]
    end = next((one.block for one in behind if one.runs), behind[0].block if behind else block_count)
    return range(layers[number].blocks[-1] + 1, end)


def _left_by(removal: Removal, block_count: int) -> Iterator[Layer]:
    """Yield what a removal leaves of the blocks, whatever the other stage does."""
    for block in range(block_count):
        lost = removal.lost_at(block)
        match removal.at(block):
            case ():
                yield Layer((block,), "run", like=block)
            case _ if len(lost) == len(PARTS):
                pass
            case (KvOnly(),):
                yield Layer((block,), "kv-only", like=block)
            case (Merge() as merge,):
                if block == min(merge.keep, merge.drop):
                    yield Layer(merge.blocks, "merged", like=merge.keep, merge=merge)
            case _:
                part = next(iter(lost), None)
                state = _WITHOUT[part] if part else "shrunk"
                yield Layer((block,), state, like=block, shrinks=removal.shrinks_at(block), lost=part)


def _feeding(decode_layers: tuple[Layer, ...], prefill_layers: Iterator[Layer]) -> Iterator[Layer]:
    """Yield prefill's layers with the decode layers that they feed, and those that only compute K/V."""
    reading = (layer for layer in decode_layers if layer.has_kv)
    slots = {layer.block: (number, layer) for number, layer in enumerate(reading)}
    passed = -1
    for layer in prefill_layers:
        if layer.block <= passed:
            continue
        if layer.block not in slots:
            yield layer
            continue
        slot, fed = slots[layer.block]
        if layer.state == "kv-only":
            # The K/V are those of decode's own layer, which may cover several blocks; all of them are skipped.
            yield _kv_of(fed, "kv-only", slot)
            passed = fed.blocks[-1]
        elif fed.merge is None or fed.merge == layer.merge or fed.merge.kv == "frozen":
            sliced = tuple(head for head in fed.removed_kv_heads if head not in layer.removed_kv_heads)
            yield replace(layer, kv_slot=slot, sliced_heads=sliced)
        else:
            yield _kv_of(fed, "shadow", slot)
            yield layer


def _kv_of(fed: Layer, state: LayerState, slot: int) -> Layer:
    """Return the layer that computes the K/V of a decode layer and no more: its MLP does not matter."""
    attention = tuple(shrink for shrink in fed.shrinks if shrink.part == "attention")
    return replace(fed, state=state, shrinks=attention, lost=None, kv_slot=slot)
