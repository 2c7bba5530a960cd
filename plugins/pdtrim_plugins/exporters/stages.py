"""The blocks of a stage as a checkpoint has them: which module, under which number, and how much of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pdtrim_core.api import Layer, Merge, PdtrimError, Plan, Removal, SavedPlan, Shrink, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockLayout, BlockModel, QuantizedWeights, RecoveredWeights


@dataclass(frozen=True)
class StoredBlock:
    """One block of a checkpoint, made when it is written, so that no two narrowed or merged ones are in memory at once.

    `like` is the block whose entries of the config it takes. `parts` are the parts that are stored, None for all of them;
    `under` is put in front of their names. `quantized` gives for each linear layer in another number format what is stored in
    place of its weight. `lost` is the part, attention or MLP, that it runs without.
    """

    index: int
    like: int
    make: Callable[[], nn.Module]
    widths: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] | None = None
    under: str = ""
    quantized: Callable[[], Mapping[str, Mapping[str, Tensor]]] = dict
    lost: str | None = None

    def tensors(self, path: str) -> dict[str, Tensor]:
        """Return what is stored, by full name; `path` is that of the list of blocks."""
        state = self.make().state_dict()
        for linear, stored in self.quantized().items():
            del state[f"{linear}.weight"]
            state |= {f"{linear}.{name}": tensor for name, tensor in stored.items()}
        prefix = f"{path}.{self.index}.{self.under}"
        wanted = tuple(f"{part}." for part in self.parts or ())
        return {prefix + name: tensor.detach() for name, tensor in state.items() if self.parts is None or name.startswith(wanted)}

    def quantized_in(self, path: str) -> set[str]:
        """Return the full names of the tensors that have another number format, with their scales."""
        prefix = f"{path}.{self.index}.{self.under}"
        return {f"{prefix}{linear}.{name}" for linear, stored in self.quantized().items() for name in stored}


@dataclass(frozen=True)
class Parts:
    """A model, the folder of a plan's stored modules, what recovery changed, and quantised weights; each is read when needed."""

    model: BlockModel
    folder: Path
    recovered: RecoveredWeights | None = None
    quantized: QuantizedWeights | None = None

    @classmethod
    def of_run(cls, model: BlockModel, saved: SavedPlan, run: Path) -> Self:
        """Return those of a run. Raises `PdtrimError` where its folder has not the recovered or quantised weights of its plan."""
        from pdtrim_core.api import QuantizedWeights, RecoveredWeights  # noqa: PLC0415 - listings must not import torch

        return cls(model, run / "merges", RecoveredWeights(saved, model, run), QuantizedWeights(saved, model, run))

    def module(self, stage: Stage, layer: Layer) -> nn.Module:
        """Return what a layer of a stage runs: what the plan left of it, with the weights that recovery gave it."""
        left = self.left(layer)
        return left if self.recovered is None else self.recovered.given_to(left, stage, layer)

    def stored(self, stage: Stage, layer: Layer) -> Mapping[str, Mapping[str, Tensor]]:
        """Return what is stored in place of the weights of a layer's linear layers that have another number format."""
        return {} if self.quantized is None else self.quantized.of(stage, layer)

    def give_format(self, config: Any, stage: Stage) -> None:
        """Let the config of a stage's checkpoint tell the number format of its weights, where that is another one."""
        from torch import nn  # noqa: PLC0415 - listings must not import torch

        found = None if self.quantized is None else self.quantized.config(stage)
        if found is not None:
            inside = f"{self.model.layout.blocks}."
            linears = (name for name, part in self.model.model.named_modules() if isinstance(part, nn.Linear))
            outside = [name for name in linears if not name.startswith(inside)]
            config.quantization_config = {**found, "ignore": [*found.get("ignore", ()), *outside]}

    def left(self, layer: Layer) -> nn.Module:
        """Return a merged block, a block less some units or a part, or a block as it is."""
        if layer.merge is not None:
            return self._modules([layer.merge])[layer.merge]
        return self.model.left_of(layer, self._modules(layer.shrinks))

    def widths_at(self, layer: Layer) -> dict[str, Any]:
        """Return the widths of a layer that are not those of its family's config, and which projections got a bias.

        Those of a model that was pruned before stand in its config, for blocks that lose nothing now, too.
        """
        entry = getattr(self.model.model.config, "pdtrim", None) or {}
        told, found = entry.get("widths", {}).get(str(layer.like), {}), self.widths(layer.shrinks)
        biased = {*told.get("bias", ()), *found.get("bias", ())}
        return {**told, **found, **({"bias": sorted(biased)} if biased else {})}

    def widths(self, shrinks: Sequence[Shrink]) -> dict[str, Any]:
        """Return how many K/V heads, MLP channels and experts are left, and which projections out of a part got a bias."""
        if not shrinks:
            return {}
        units = self.model.units(shrinks[0].block)
        found: dict[str, Any] = {shrink.part: units.count(shrink.part) - len(shrink.units) for shrink in shrinks}
        modules = self._modules(shrinks)
        biased = [shrink.part for shrink in shrinks if shrink in modules and self._adds_bias(shrink, modules[shrink])]
        return {**found, "bias": sorted(biased)} if biased else found

    def _adds_bias(self, shrink: Shrink, out: nn.Module) -> bool:
        dense = self.model.units(shrink.block).projections(shrink.part)[-1]
        return getattr(out, "bias", None) is not None and getattr(dense, "bias", None) is None

    def _modules(self, elements: Sequence[Merge | Shrink]) -> dict[Merge | Shrink, nn.Module]:
        from pdtrim_core.api import load_modules  # noqa: PLC0415 - listings must not import torch

        return load_modules(Plan(decode=Removal(elements)), self.model, self.folder)


def decode_blocks(parts: Parts, plan: Plan) -> list[StoredBlock]:
    """Return the blocks of the decode model, renumbered."""
    layers = plan.layers("decode", parts.model.block_count)
    return [_stored(parts, "decode", number, layer) for number, layer in enumerate(layers)]


def own_prefill_blocks(parts: Parts, plan: Plan) -> list[StoredBlock]:
    """Return the blocks of a prefill that is a model of its own: one with some of the experts, and decode's K/V.

    Empty where prefill has all experts, those of decode, or other K/V. A truncated prefill runs the last block that decode
    reads, too, with decode's experts, which changes no K/V.
    """
    count = parts.model.block_count
    if plan.prefill == plan.decode or not plan.prefill.shrinks_experts:
        return []
    last = plan.slots(count)[-1].block
    alone = plan.prefill_alone(count)
    if not alone.at(last):
        alone = alone.with_(*(shrink for shrink in plan.decode.shrinks_at(last) if shrink.part == "experts"))
    layers = Plan(prefill=alone, decode=plan.decode).layers("prefill", count)
    decode = [layer.block for layer in plan.layers("decode", count) if layer.has_kv]
    if [layer.block for layer in layers if layer.has_kv] != decode or any(layer.sliced_heads for layer in layers):
        return []
    return (
        [_stored(parts, "prefill", number, layer) for number, layer in enumerate(layers)]
        if all(layer.runs for layer in layers)
        else []
    )


@dataclass(frozen=True)
class Prefill:
    """The blocks of the prefill model under their original numbers, and the entry of its config that tells of them."""

    stored: list[StoredBlock]
    told: dict[str, Any]


def prefill_blocks(parts: Parts, plan: Plan) -> Prefill:
    """Return what prefill has of each block. Raises `PdtrimError` where K and V have no parts of their own.

    In what is told, `decode_index` has the places of K/V in a cache, and `decode_layer` the numbers of decode's blocks, which are
    others where some of them have no attention.
    """
    count = parts.model.block_count
    prefill, decode = plan.layers("prefill", count), plan.layers("decode", count)
    layouts = {layer.block for layer in prefill}
    numbers, reading = zip(*((number, layer) for number, layer in enumerate(decode) if layer.has_kv), strict=True)
    fed_by = {layer.kv_slot: layer for layer in prefill if layer.kv_slot is not None}
    told = {
        "block_count": count,
        "removed": [block for block in range(count) if block not in layouts],
        "kv_only": [layer.block for layer in prefill if layer.state == "kv-only"],
        "shadows": [layer.block for layer in prefill if layer.state == "shadow"],
        "merged": {str(fed.block): _told_of(fed.merge, fed_by[slot]) for slot, fed in enumerate(reading) if fed.merge},
        "decode_index": {str(layer.block): slot for slot, layer in fed_by.items()},
        "decode_layer": {str(layer.block): numbers[slot] for slot, layer in fed_by.items()},
        "decode_layers": len(decode),
        "tail": _tail(prefill, count),
    }
    return Prefill([_stored(parts, "prefill", layer.block, layer) for layer in prefill], told)


def _stored(parts: Parts, stage: Stage, index: int, layer: Layer) -> StoredBlock:
    """Return a layer as a checkpoint has it: all of it, or what makes its K/V."""
    kept = None if layer.runs else _kv(parts.model.layout, parts.model)
    under = "shadow." if layer.state == "shadow" else ""
    return StoredBlock(
        index,
        layer.like,
        lambda: parts.module(stage, layer),
        parts.widths_at(layer),
        kept,
        under,
        lambda: parts.stored(stage, layer),
        layer.lost,
    )


def widths_of(stored: Sequence[StoredBlock]) -> dict[str, Any]:
    """Return the widths of the blocks that have others than the dense ones, by number."""
    return {str(block.index): dict(block.widths) for block in stored if block.widths}


def lost_in(stored: Sequence[StoredBlock]) -> dict[str, str]:
    """Return the parts that blocks run without, by number."""
    return {str(block.index): block.lost for block in stored if block.lost}


def layout_data(layout: BlockLayout) -> dict[str, Any]:
    """Return a place as JSON data."""
    return {"blocks": layout.blocks, "kv": list(layout.kv), "attention": list(layout.attention), "mlp": list(layout.mlp)}


def _kv(layout: BlockLayout, model: BlockModel) -> tuple[str, ...]:
    if not layout.kv:
        raise PdtrimError(
            f"{model.name}: this family computes K and V together with Q, so prefill cannot have them alone: use the decode "
            "model in both stages (--to checkpoints)"
        )
    return layout.kv


def _told_of(merge: Merge, feeding: Layer) -> dict[str, Any]:
    does = feeding.state if feeding.state in ("merged", "kv-only") else "blocks"
    return {"blocks": list(merge.blocks), "keep": merge.keep, "kv": merge.kv, "prefill": does}


def _tail(prefill: Sequence[Layer], count: int) -> int | None:
    """Return the first block behind which, and itself, no block runs; None where the last one does."""
    tail = max((layer.block + 1 for layer in prefill if layer.runs), default=0)
    return tail if tail < count else None
