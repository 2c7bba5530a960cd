"""The blocks of a stage as a checkpoint has them: which module, under which number, and how much of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdtrim_core import KvOnly, Merge, PdtrimError, Plan, Removal, Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockLayout, BlockModel


@dataclass(frozen=True)
class StoredBlock:
    """One block of a checkpoint, made when it is written, so that no two narrowed or merged ones are in memory at once.

    `like` is the block whose entries of the config it takes. `parts` are the parts that are stored, None for all of them;
    `under` is put in front of their names.
    """

    index: int
    like: int
    make: Callable[[], nn.Module]
    widths: Mapping[str, Any] = field(default_factory=dict)
    parts: tuple[str, ...] | None = None
    under: str = ""

    def tensors(self, path: str) -> dict[str, Tensor]:
        """Return what is stored, by full name; `path` is that of the list of blocks."""
        module = self.make()
        prefix = f"{path}.{self.index}.{self.under}"
        wanted = tuple(f"{part}." for part in self.parts or ())
        return {
            prefix + name: tensor.detach()
            for name, tensor in module.state_dict().items()
            if self.parts is None or name.startswith(wanted)
        }


@dataclass(frozen=True)
class Parts:
    """A model and the stored modules of a plan, each read when it is needed."""

    model: BlockModel
    folder: Path

    def merged(self, merge: Merge) -> nn.Module:
        """Return the block that stands for a run."""
        return self._modules([merge])[merge]

    def shrunk(self, shrinks: Sequence[Shrink]) -> nn.Module:
        """Return a block less the units that shrinks of it remove."""
        from pdtrim_core.api import head_dim_of, narrowed  # noqa: PLC0415 - listings must not import torch

        outputs = {e: module for e, module in self._modules(shrinks).items() if isinstance(e, Shrink)}
        block = self.model.blocks[shrinks[0].block]
        return narrowed(block, self.model.layout, head_dim_of(self.model.config), shrinks, outputs)

    def widths(self, shrinks: Sequence[Shrink]) -> dict[str, Any]:
        """Return how many K/V heads and MLP channels are left, and which projections out of a part got a bias."""
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
    stored = []
    for number, slot in enumerate(plan.slots(parts.model.block_count)):
        if slot.merge is not None:
            stored.append(StoredBlock(number, slot.merge.keep, _maker(parts.merged, slot.merge)))
        elif slot.shrinks:
            make = _maker(parts.shrunk, slot.shrinks)
            stored.append(StoredBlock(number, slot.block, make, parts.widths(slot.shrinks)))
        else:
            stored.append(StoredBlock(number, slot.block, _maker(parts.model.blocks.__getitem__, slot.block)))
    return stored


@dataclass(frozen=True)
class Prefill:
    """The blocks of the prefill model under their original numbers, and the entry of its config that tells of them."""

    stored: list[StoredBlock]
    told: dict[str, Any]


def prefill_blocks(parts: Parts, plan: Plan) -> Prefill:
    """Return what prefill has of each block. Raises `PdtrimError` where K and V have no parts of their own."""
    model, count = parts.model, parts.model.block_count
    slots = plan.slots(count)
    sources = {source.block: source for source in plan.kv_map(count)}
    stored: list[StoredBlock] = []
    removed, kv_only, shadows = [], [], []
    for block in range(count):
        source = sources.get(block)
        slot = slots[source.slot] if source else None
        if slot and slot.merge and source and source.source == "shadow":
            shadows.append(block)
            make = _maker(parts.merged, slot.merge)
            stored.append(StoredBlock(block, slot.merge.keep, make, parts=_kv(model.layout, model), under="shadow."))
        match plan.state("prefill", block):
            case "run":
                stored.append(StoredBlock(block, block, _maker(model.blocks.__getitem__, block)))
            case "shrunk":
                shrinks = plan.prefill.shrinks_at(block)
                stored.append(StoredBlock(block, block, _maker(parts.shrunk, shrinks), parts.widths(shrinks)))
            case "merged":
                (merge,) = (element for element in plan.prefill.at(block) if isinstance(element, Merge))
                stored.append(StoredBlock(block, merge.keep, _maker(parts.merged, merge)))
            case "kv-only" if slot is not None:
                kv_only.append(block)
                stored.append(_stored_kv(parts, block, slot.merge, slot.shrinks))
            case _:
                removed.append(block)
    told = {
        "block_count": count,
        "removed": removed,
        "kv_only": kv_only,
        "shadows": shadows,
        "merged": {str(e.blocks[0]): _told_of(e, plan) for e in plan.decode if isinstance(e, Merge)},
        "decode_index": {str(source.block): source.slot for source in plan.kv_map(count)},
        "decode_layers": len(slots),
        "tail": _tail(count, {*removed, *kv_only}),
    }
    return Prefill(stored, told)


def _stored_kv(parts: Parts, block: int, merge: Merge | None, shrinks: Sequence[Shrink]) -> StoredBlock:
    """Return what makes the K/V of a block, and nothing else of it."""
    attention = [shrink for shrink in shrinks if shrink.part == "attention"]
    if merge:
        make = _maker(parts.merged, merge)
    elif attention:
        make = _maker(parts.shrunk, attention)
    else:
        make = _maker(parts.model.blocks.__getitem__, block)
    return StoredBlock(block, block, make, parts.widths(attention), parts=_kv(parts.model.layout, parts.model))


def widths_of(stored: Sequence[StoredBlock]) -> dict[str, Any]:
    """Return the widths of the blocks that have others than the dense ones, by number."""
    return {str(block.index): dict(block.widths) for block in stored if block.widths}


def layout_data(layout: BlockLayout) -> dict[str, Any]:
    """Return a place as JSON data."""
    return {"blocks": layout.blocks, "kv": list(layout.kv), "attention": list(layout.attention), "mlp": list(layout.mlp)}


def _maker(make: Callable[[Any], nn.Module], argument: Any) -> Callable[[], nn.Module]:
    return lambda: make(argument)


def _kv(layout: BlockLayout, model: BlockModel) -> tuple[str, ...]:
    if not layout.kv:
        raise PdtrimError(
            f"{model.name}: this family computes K and V together with Q, so prefill cannot have them alone: use the decode "
            "model in both stages (--to checkpoints)"
        )
    return layout.kv


def _told_of(merge: Merge, plan: Plan) -> dict[str, Any]:
    first = merge.blocks[0]
    does = "merged" if merge in plan.prefill else "kv-only" if KvOnly(first) in plan.prefill else "blocks"
    return {"blocks": list(merge.blocks), "keep": merge.keep, "kv": merge.kv, "prefill": does}


def _tail(count: int, not_run: set[int]) -> int | None:
    """Return the first block behind which, and itself, no block runs; None where the last one does."""
    tail = count
    while tail and tail - 1 in not_run:
        tail -= 1
    return tail if tail < count else None
