"""Elements and removals: what one stage loses. Blocks count from 0."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, get_args, get_origin, get_type_hints

from pdtrim_core.errors import PlanError
from pdtrim_core.wording import shown

Part = Literal["attention", "mlp"]
Stage = Literal["prefill", "decode"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
ShrunkPart = Literal["attention", "mlp", "experts"]
"""What loses units in a `Shrink`: the experts are those of a mixture, which is the MLP of its block."""
MOST_BLOCKS = 1000
"""Blocks of a model at most: several times as many as the deepest that was published. A plan lists them one by one."""
MOST_UNITS = 10_000_000
"""Units of one part of a block at most: a hundred times as many as the widest that was published."""


@dataclass(frozen=True, order=True)
class Drop:
    """A block that is not run: the hidden states skip it."""

    block: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that this element changes, in order."""
        return (self.block,)

    @property
    def places(self) -> frozenset[tuple[int, Part]]:
        """The (block, part) places that this element changes."""
        return frozenset((self.block, part) for part in PARTS)

    def __str__(self) -> str:
        return str(self.block)


@dataclass(frozen=True, order=True)
class DropPart:
    """A block that runs without its attention or without its MLP: what the part would add to the hidden states is left out.

    Without attention a stage neither computes nor reads K/V at the block. The norm in front of the part stays.
    """

    block: int
    part: Part

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that this element changes, in order."""
        return (self.block,)

    @property
    def places(self) -> frozenset[tuple[int, Part]]:
        """The (block, part) places that this element changes."""
        return frozenset({(self.block, self.part)})

    def __str__(self) -> str:
        return f"{self.block}.{self.part}"


@dataclass(frozen=True, order=True)
class Merge:
    """A run of neighbouring blocks, two or more, replaced by one block, which stands where the first of them stood.

    `keep` gives the first weights and is one end of the run, `drop` is the other end. The paper merges pairs. With
    `kv = "shadow"` a prefill that keeps the run also computes the merged block's K/V on the run's input; with
    `kv = "frozen"` the merged block kept the K/V weights of the run's first block, and prefill's own cache of that block is
    what decode needs.
    """

    keep: int
    drop: int
    kv: Literal["shadow", "frozen"] = "shadow"

    def __post_init__(self) -> None:
        if max(self.keep, self.drop) - min(self.keep, self.drop) >= MOST_BLOCKS:
            raise PlanError(f"a merge of blocks {shown(self.keep)} to {shown(self.drop)}: models have {MOST_BLOCKS:,} at most")
        if self.keep == self.drop:
            raise PlanError(f"a merge takes two neighbouring blocks or more, got only block {self.keep}")
        if self.kv == "frozen" and self.keep > self.drop:
            raise PlanError(
                f"a merge of {self.drop} and {self.keep} with frozen K/V must start from block {self.drop}, the first "
                "of the run: prefill has no K/V of the others on the run's input"
            )

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that this element changes, in order."""
        return tuple(range(min(self.keep, self.drop), max(self.keep, self.drop) + 1))

    @property
    def places(self) -> frozenset[tuple[int, Part]]:
        """The (block, part) places that this element changes."""
        return frozenset((block, part) for block in self.blocks for part in PARTS)

    def __str__(self) -> str:
        return "+".join(str(block) for block in self.blocks)


@dataclass(frozen=True, order=True)
class Shrink:
    """A block that loses units: K/V heads with their query heads, MLP channels, or experts with their rows of the router.

    Units count from 0 in the dense block. The experts that all tokens go to (shared ones) are no units, and stay.
    """

    block: int
    part: ShrunkPart
    units: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.units or tuple(sorted(set(self.units))) != self.units or self.units[0] < 0:
            raise PlanError(f"the removed units of block {self.block} must be distinct, rising and not negative")
        if self.units[-1] >= MOST_UNITS:
            raise PlanError(f"no block has a unit {shown(self.units[-1])}: models have at most {MOST_UNITS:,} in a part")

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that this element changes, in order."""
        return (self.block,)

    @property
    def places(self) -> frozenset[tuple[int, Part]]:
        """The (block, part) places that this element changes."""
        return frozenset({(self.block, "mlp" if self.part == "experts" else self.part)})

    def __str__(self) -> str:
        return f"{self.block}.{self.part}-{len(self.units)}"


@dataclass(frozen=True, order=True)
class KvOnly:
    """Prefill only: the block is skipped, but the K/V that a decode slot needs are computed and shipped.

    `slot` is the block that decode runs there, or the first block of the pair that decode merged.
    """

    slot: int

    @property
    def blocks(self) -> tuple[int, ...]:
        """The blocks that this element changes, in order (of a merged pair, the plan knows the second one)."""
        return (self.slot,)

    @property
    def places(self) -> frozenset[tuple[int, Part]]:
        """The (block, part) places that this element changes."""
        return frozenset((self.slot, part) for part in PARTS)

    def __str__(self) -> str:
        return f"kv:{self.slot}"


Element = Drop | DropPart | Merge | Shrink | KvOnly
_KINDS: dict[str, Callable[..., Element]] = {
    "drop": Drop,
    "drop-part": DropPart,
    "merge": Merge,
    "shrink": Shrink,
    "kv-only": KvOnly,
}
_KIND_OF: dict[object, str] = {kind: name for name, kind in _KINDS.items()}


def _order(element: Element) -> tuple[int, int, str]:
    return (element.blocks[0], len(element.blocks), _KIND_OF[type(element)] + str(element))


def _ends(element: Element) -> tuple[int, int]:
    """Return the first and the last block of an element, without a list of what lies between."""
    if isinstance(element, Merge):
        return min(element.keep, element.drop), max(element.keep, element.drop)
    return (element.slot,) * 2 if isinstance(element, KvOnly) else (element.block,) * 2


def _check_sizes(elements: Sequence[Element]) -> None:
    """Raise `PlanError` for blocks that no model has, and for more elements than fit, before anything is listed one by one."""
    covered = 0
    for first, last in map(_ends, elements):
        if first < 0:
            raise PlanError(f"blocks count from 0, got {shown(first)}")
        if last >= MOST_BLOCKS:
            raise PlanError(f"no model has a block {shown(last)}: there are {MOST_BLOCKS:,} at most")
        covered += last - first + 1
    if covered > MOST_BLOCKS * len(PARTS):
        raise PlanError(f"these {len(elements):,} elements cover {covered:,} blocks, so some block is changed twice")


@dataclass(frozen=True)
class Removal:
    """A set of elements that touch disjoint places, kept in the order of their blocks."""

    elements: tuple[Element, ...] = ()

    def __init__(self, elements: Iterable[Element] = ()) -> None:
        elements = tuple(elements)
        for element in elements:
            if not isinstance(element, Element):
                raise PlanError(f"{element!r} is no element of a removal: Drop(3) removes block 3")
        _check_sizes(elements)
        ordered = tuple(sorted(elements, key=_order))
        owner: dict[tuple[int, Part], Element] = {}
        for element in ordered:
            for place in sorted(element.places):
                if place in owner:
                    raise PlanError(f"block {place[0]} is changed twice in one removal: {owner[place]} and {element}")
                owner[place] = element
        object.__setattr__(self, "elements", ordered)

    def __iter__(self) -> Iterator[Element]:
        return iter(self.elements)

    def __len__(self) -> int:
        return len(self.elements)

    def __contains__(self, element: object) -> bool:
        return element in self.elements

    def __str__(self) -> str:
        return "{" + ", ".join(str(element) for element in self.elements) + "}"

    def at(self, block: int) -> tuple[Element, ...]:
        """Return the elements that change this block."""
        return self._by_block.get(block, ())

    @cached_property
    def _by_block(self) -> dict[int, tuple[Element, ...]]:
        found: dict[int, tuple[Element, ...]] = {}
        for element in self.elements:
            for block in element.blocks:
                found[block] = (*found.get(block, ()), element)
        return found

    def shrinks_at(self, block: int) -> tuple[Shrink, ...]:
        """Return the shrinks of this block."""
        return tuple(element for element in self.at(block) if isinstance(element, Shrink))

    def lost_at(self, block: int) -> frozenset[Part]:
        """Return the parts that this block loses whole: both where it is dropped."""
        there = self.at(block)
        if any(isinstance(element, Drop) for element in there):
            return frozenset(PARTS)
        return frozenset(element.part for element in there if isinstance(element, DropPart))

    def with_(self, *elements: Element) -> Removal:
        """Return this removal with more elements."""
        return Removal((*self.elements, *elements))

    def without(self, *elements: Element) -> Removal:
        """Return this removal less some of its elements."""
        return Removal(element for element in self.elements if element not in elements)

    @property
    def blocks_removed(self) -> int:
        """How many blocks fewer a stage runs: of a merge all but one; a block that keeps a part still runs."""
        whole = sum(len(e.blocks) - isinstance(e, Merge) for e in self.elements if not isinstance(e, Shrink | DropPart))
        parts = {e.block for e in self.elements if isinstance(e, DropPart)}
        return whole + sum(len(self.lost_at(block)) == len(PARTS) for block in parts)

    @property
    def shrinks_experts(self) -> bool:
        """Whether a block has fewer experts."""
        return any(isinstance(element, Shrink) and element.part == "experts" for element in self.elements)

    @property
    def dropped_parts(self) -> tuple[DropPart, ...]:
        """The parts that go from blocks, in the order of their blocks."""
        return tuple(element for element in self.elements if isinstance(element, DropPart))


def element_to_json(element: Element) -> dict[str, Any]:
    """Return an element as JSON data: its kind and its fields."""
    values = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(element).items()}
    return {"kind": _KIND_OF[type(element)], **values}


def element_from_json(data: Mapping[str, Any]) -> Element:
    """Return the element that `element_to_json` wrote; raises `PlanError` on anything else."""
    try:
        kind = _KINDS[data["kind"]]
        given = {key: tuple(value) if isinstance(value, list) else value for key, value in data.items() if key != "kind"}
        hints = get_type_hints(kind)
        if not all(_is(value, hints[key]) for key, value in given.items()):
            raise TypeError(data)
        return kind(**given)
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"not an element of a plan: {shown(data)}") from error


def _is(value: object, hint: Any) -> bool:
    """Tell whether a value from JSON is of a field's type: an int, one of some words, or a tuple of ints."""
    if hint is int:
        return type(value) is int
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    return isinstance(value, tuple) and all(type(unit) is int for unit in value)
