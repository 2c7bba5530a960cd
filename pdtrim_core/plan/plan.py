"""The plan: a removal for each stage, and the law that they obey together.

A plan is a value: frozen, ordered, and free of torch. Its law, "every block that decode runs finds its K/V in what
prefill computed", is checked where the plan is made, so that no other code needs to check it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Self

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.elements import MOST_BLOCKS, PARTS, Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink, Stage
from pdtrim_core.plan.layers import Layer, LayerState, layers_of
from pdtrim_core.plan.selections import Selection
from pdtrim_core.wording import shown

FirstToken = Literal["decode", "prefill"]
MOST_TOLD = 10
"""Breaches of the law that a message names, at most."""
State = Literal["run", "shrunk", "no-attention", "no-mlp", "merged", "into", "kv-only", "gone"]
"""What a stage does at a block: runs it, runs it narrowed, runs it without its attention or its MLP, runs the merged block of the
run that begins here, nothing because the block is merged into an earlier one, computes only its K/V, nothing at all."""


@dataclass(frozen=True)
class Slot:
    """One block of decode that reads K/V: a block of the model, shrunk or not, or the merged block of a pair."""

    block: int
    merge: Merge | None = None
    shrinks: tuple[Shrink, ...] = ()

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks of the dense model that this slot covers."""
        return self.merge.blocks if self.merge else (self.block,)


KvFrom = Literal["run", "kv-only", "merged", "shadow"]
_KV_FROM: Mapping[LayerState, KvFrom] = {
    "run": "run",
    "shrunk": "run",
    "no-mlp": "run",
    "merged": "merged",
    "kv-only": "kv-only",
    "shadow": "shadow",
}


@dataclass(frozen=True)
class KvSource:
    """Where the K/V of one decode slot come from in prefill.

    `source` is "run" (prefill runs the block), "kv-only" (only its K/V are computed), "merged" (prefill runs the same
    merged block) or "shadow" (the merged block's K/V on the pair's input). `removed_heads` are the K/V heads that
    prefill has and decode does not, by their numbers in the dense model: decode takes a slice.
    """

    slot: int
    block: int
    source: KvFrom
    removed_heads: tuple[int, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A removal for prefill and one for decode, under one law.

    Every block whose attention decode runs finds its K/V in what prefill computed. Raises `PlanError` where it does not:
    transformers and the engines would not notice, and decode would attend to nothing but its own tokens.

    `selections` has the blocks of decode that read only some of a prompt's K/V, in order: one a block at most, and only where
    decode runs a layer. What prefill computes for itself does not depend on them.
    """

    prefill: Removal = field(default_factory=Removal)
    decode: Removal = field(default_factory=Removal)
    selections: tuple[Selection, ...] = field(default=(), kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "selections", tuple(sorted(self.selections, key=lambda selection: selection.block)))
        problems = [*_violations(self.prefill, self.decode), *_wrong_selections(self.selections, self.decode)]
        if problems:
            more = "; and so on" if len(problems) > MOST_TOLD else ""
            raise PlanError("this plan breaks the K/V law: " + "; ".join(problems[:MOST_TOLD]) + more)

    @classmethod
    def unified(cls, removal: Removal) -> Self:
        """Return the plan in which both stages lose the same."""
        return cls(prefill=removal, decode=removal)

    def __str__(self) -> str:
        selected = f", prompts {{{', '.join(map(str, self.selections))}}}" if self.selections else ""
        return f"prefill {self.prefill}, decode {self.decode}{selected}"

    def selecting(self, selections: Iterable[Selection]) -> Plan:
        """Return this plan with other selections of K/V."""
        return replace(self, selections=tuple(selections))

    @property
    def unselected(self) -> Plan:
        """This plan where decode reads all of every prompt."""
        return self.selecting(()) if self.selections else self

    @property
    def drops_parts(self) -> bool:
        """Whether blocks of either stage run without their attention or their MLP."""
        return bool(self.prefill.dropped_parts or self.decode.dropped_parts)

    @property
    def shrinks_experts(self) -> bool:
        """Whether blocks of either stage have fewer experts."""
        return self.prefill.shrinks_experts or self.decode.shrinks_experts

    def removal(self, stage: Stage) -> Removal:
        """Return what one stage loses."""
        return self.prefill if stage == "prefill" else self.decode

    def layers(self, stage: Stage, block_count: int) -> tuple[Layer, ...]:
        """Return what one stage runs on a model of so many blocks, and which K/V it computes, layer by layer."""
        layers = layers_of(self.prefill, self.decode, stage, block_count)
        if not self.selections:
            return layers
        # A layer of prefill is placed at the block of the decode layer that it feeds.
        by_block = {selection.block: selection for selection in self.selections}
        return tuple(
            replace(layer, selection=by_block.get(layer.block)) if stage == "decode" or layer.kv_slot is not None else layer
            for layer in layers
        )

    def state(self, stage: Stage, block: int) -> State:
        """Return what a stage does at a block of the dense model."""
        return self.states(stage, block + 1)[block]

    def states(self, stage: Stage, block_count: int) -> tuple[State, ...]:
        """Return what a stage does at each block of the dense model."""
        found: dict[int, State] = {}
        for layer in self.layers(stage, block_count):
            if layer.state != "shadow":
                found.update(dict.fromkeys(layer.blocks, "into"))
                found[layer.block] = layer.state
        return tuple(found.get(block, "gone") for block in range(block_count))

    @property
    def first_block(self) -> int | None:
        """The first block that either stage changes; below it the dense model runs. None for the dense plan."""
        changed = [e.blocks[0] for e in (*self.prefill, *self.decode)]
        return min([*changed, *(selection.block for selection in self.selections)], default=None)

    def check_fits(self, block_count: int) -> None:
        """Raise `PlanError` unless the plan fits a model of so many blocks and leaves decode at least one."""
        changed = [e.blocks[-1] for e in (*self.prefill, *self.decode)]
        last = max([*changed, *(selection.block for selection in self.selections)], default=-1)
        if last >= block_count:
            raise PlanError(f"this plan changes block {last}, but the model has blocks 0 to {block_count - 1}")
        if not self.layers("decode", block_count):
            raise PlanError(f"this plan leaves decode none of the {block_count} blocks")
        if not self.slots(block_count):
            raise PlanError("this plan leaves decode no attention, so that it could not read the prompt: keep that of a block")

    def slots(self, block_count: int) -> tuple[Slot, ...]:
        """Return the blocks whose K/V decode reads, in order; their position is that of their K/V in decode's cache."""
        layers = self.layers("decode", block_count)
        return tuple(Slot(layer.block, layer.merge, layer.shrinks) for layer in layers if layer.has_kv)

    def kv_map(self, block_count: int) -> tuple[KvSource, ...]:
        """Return for each decode slot, in order, which of prefill's K/V feed it."""
        return tuple(
            KvSource(layer.kv_slot, layer.block, _KV_FROM[layer.state], layer.sliced_heads)
            for layer in self.layers("prefill", block_count)
            if layer.kv_slot is not None
        )

    def prefill_alone(self, block_count: int) -> Removal:
        """Return what prefill loses as a model of its own: K/V-only blocks are dropped, but the last that decode reads is run."""
        last = self.slots(block_count)[-1].block
        return Removal(Drop(e.blocks[0]) if isinstance(e, KvOnly) else e for e in self.prefill if e != KvOnly(last))

    def truncated_prefill(self, block_count: int) -> Plan:
        """Return the plan whose prefill computes nothing that no one reads, when decode makes the first token.

        Let j be the last block whose K/V decode reads. Prefill needs the input of j and the K/V of j, and nothing after that:
        the rest of j, the blocks behind it, the final norm and the head change no logit. Applied twice it changes nothing.
        """
        slots = self.slots(block_count)
        if not slots:
            return self
        last = slots[-1]
        head = [element for element in self.prefill if element.blocks[0] < last.block]
        tail = [Drop(block) for block in range(last.blocks[-1] + 1, block_count)]
        return replace(self, prefill=Removal([*head, KvOnly(last.block), *tail]))


@dataclass(frozen=True)
class LayerOf:
    """Names one layer of one stage under one plan: what replaces the weights of a layer is kept under it.

    `block` is that at which the layer is placed; with `shadow` it is the layer that only computes the K/V of a merged block
    there, beside the block that prefill runs. Weights do not depend on what decode reads of a prompt: plans that differ in their
    selections alone have the same names.
    """

    plan: Plan
    stage: Stage
    block: int
    shadow: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", self.plan.unselected)

    @classmethod
    def at(cls, plan: Plan, stage: Stage, layer: Layer) -> Self:
        """Return the name of a layer."""
        return cls(plan, stage, layer.block, layer.state == "shadow")


@dataclass(frozen=True)
class FirstTokensOf:
    """Names the table of one plan from which prefill knows the hidden states of the prompts' first tokens."""

    plan: Plan

    def __post_init__(self) -> None:
        object.__setattr__(self, "plan", self.plan.unselected)


RecoveredPart = LayerOf | FirstTokensOf
"""What recovery gives to a plan, by the names under which a plan's modules have it."""


def _violations(prefill: Removal, decode: Removal) -> list[str]:
    """Return what breaks the law, one clause each. A decode block that no element touches is run whole."""
    problems = dict.fromkeys(f"decode has {e}, but K/V-only is a state of prefill" for e in decode if isinstance(e, KvOnly))
    merges = {block: e for e in decode if isinstance(e, Merge) for block in e.blocks}
    for element in prefill:
        for block in element.blocks:
            merge = merges.get(block)
            problem = _clash_with_merge(element, merge, prefill) if merge else _clash(element, block, decode)
            if problem:
                problems[problem] = None
        if len(problems) > MOST_TOLD:
            # Each sentence about a long merge names all its blocks.
            break
    return list(problems)


def _wrong_selections(selections: tuple[Selection, ...], decode: Removal) -> list[str]:
    """Return what is wrong with the blocks that K/V are selected for, one clause each."""
    problems: dict[str, None] = {}
    seen: set[int] = set()
    for selection in selections:
        block = selection.block
        if not 0 <= block < MOST_BLOCKS:
            problems[f"K/V are selected for block {shown(block)}, and models have blocks 0 to {MOST_BLOCKS - 1} at most"] = None
        if block in seen:
            problems[f"K/V are selected for block {shown(block)} twice"] = None
        seen.add(block)
        for element in decode.at(block):
            if isinstance(element, Drop):
                problems[f"K/V are selected for block {block}, but decode does not run it"] = None
            if isinstance(element, DropPart) and element.part == "attention":
                problems[f"K/V are selected for block {block}, but decode runs it without attention"] = None
            if isinstance(element, Merge) and block != element.blocks[0]:
                what = f"K/V are selected for block {block}, which decode merged: say block {element.blocks[0]}"
                problems[f"{what}, where the merge {element} is placed"] = None
    return list(problems)


def _clash_with_merge(element: Element, merge: Merge, prefill: Removal) -> str | None:
    first, *others = merge.blocks
    if element == merge or (isinstance(element, Shrink | DropPart) and element.part != "attention"):
        return None
    if isinstance(element, KvOnly) and element.slot == first:
        inside = [str(e) for block in others for e in prefill.at(block)]
        return f"prefill has kv:{first} for the merge {merge}, and also {inside[0]} inside it" if inside else None
    return (
        f"decode has the merge {merge}, but prefill has {element}: it must run those blocks, merge them the same way, or keep "
        f"the merged block's K/V only (kv:{first})"
    )


def _clash(element: Element, block: int, decode: Removal) -> str | None:
    gone = decode.lost_at(block)
    if isinstance(element, KvOnly):
        what = "it" if len(gone) == len(PARTS) else "its attention"
        kept = f"prefill keeps the K/V of block {block}, but decode does not run {what}: use a drop"
        return kept if "attention" in gone else None
    if isinstance(element, Merge):
        merged = f"decode runs block {block}, but prefill merges it and computes no K/V for it"
        return None if len(gone) == len(PARTS) else merged
    if "attention" in gone or (isinstance(element, Shrink | DropPart) and element.part != "attention"):
        return None
    if isinstance(element, DropPart):
        return f"decode runs the attention of block {block}, but prefill removes it and computes no K/V for it"
    if isinstance(element, Shrink):
        kept_by_prefill_too = {unit for shrink in decode.shrinks_at(block) if shrink.part == "attention" for unit in shrink.units}
        lost = [unit for unit in element.units if unit not in kept_by_prefill_too]
        return f"decode runs K/V heads {lost} of block {block}, but prefill has removed them" if lost else None
    return f"decode runs block {block}, but prefill removes it and computes no K/V for it"
