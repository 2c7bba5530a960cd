"""Which K/V heads and MLP channels are removed: those of lowest importance, up to a budget of parameters."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, Protocol

from pydantic import Field

from pdtrim_core import PdtrimError, Removal, Shrink

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pdtrim_core.api import BlockModel

Part = Literal["attention", "mlp"]
PARTS: tuple[Part, ...] = ("attention", "mlp")
Place = tuple[int, Part]
Parts = Annotated[
    Literal["both", "attention", "mlp"],
    Field(description="what is removed: K/V heads with their query heads, MLP channels, or both"),
]
Scope = Annotated[
    Literal["local", "global"],
    Field(description="local: the same share of each block; global: one ranking over all blocks, for heads and for channels"),
]
Width = Annotated[
    Literal["uniform", "per-block"],
    Field(
        description="uniform: the same number of units from each block, by default from all blocks, so that the result is an "
        "ordinary checkpoint; per-block: blocks may differ, which comes closer to the budget"
    ),
]
FirstBlock = Annotated[
    int | None,
    Field(
        ge=0,
        description="first block to remove units from; by default 0 if uniform, else the first eighth is kept",
    ),
]
LastBlock = Annotated[
    int | None,
    Field(
        ge=0,
        description="last block to remove units from; by default the last if uniform, else the last sixteenth is kept",
    ),
]


@dataclass(frozen=True)
class Rated:
    """The units of one part of one block: the importance of each (lowest removed first), and the parameters in each."""

    block: int
    part: Part
    importance: tuple[float, ...]
    parameters: int

    @property
    def order(self) -> list[int]:
        """The units in the order of removal, without the most important one, which always stays. Ties go to the lower unit."""
        return sorted(range(len(self.importance)), key=lambda unit: (self.importance[unit], unit))[:-1]


class _Unit(NamedTuple):
    rated: Rated
    unit: int
    rank: int


class _Queue:
    """Steps in the order in which they are taken; a step is the units that are removed together."""

    def __init__(self, steps: Sequence[Sequence[_Unit]]) -> None:
        self.steps = steps
        self.cost = [0, *accumulate(sum(unit.rated.parameters for unit in step) for step in steps)]

    def nearest(self, wanted: int) -> int:
        """Return the number of steps whose parameters come closest to `wanted`; ties take fewer."""
        above = min(bisect_left(self.cost, wanted), len(self.steps))
        return above - 1 if above and wanted - self.cost[above - 1] <= self.cost[above] - wanted else above

    def within(self, wanted: int) -> int:
        """Return the largest number of steps that remove at most `wanted` parameters."""
        return bisect_left(self.cost, wanted + 1) - 1


class Options(Protocol):
    """The options that methods with channels have in common."""

    @property
    def parts(self) -> str: ...  # noqa: D102 - see the annotations above
    @property
    def first_block(self) -> int | None: ...  # noqa: D102
    @property
    def last_block(self) -> int | None: ...  # noqa: D102
    @property
    def scope(self) -> str: ...  # noqa: D102
    @property
    def width(self) -> str: ...  # noqa: D102
    @property
    def samples(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102


def narrows(options: Options) -> frozenset[Part]:
    """Return the parts that may lose units."""
    return frozenset(part for part in PARTS if options.parts in (part, "both"))


def uniform(options: Options) -> bool:
    """Tell whether all blocks may have one shape in the end, with `width = "per-block"` by chance."""
    return not options.first_block


def places(model: BlockModel, options: Options) -> list[Place]:
    """Return the (block, part) places that units may be removed from. Raises `PdtrimError` where a block has none."""
    if options.scope == "global" and options.width == "uniform":
        raise PdtrimError('scope = "global" gives each block its own width: say width = "per-block", or scope = "local"')
    count, uniform = model.block_count, options.width == "uniform"
    first = (0 if uniform else count // 8) if options.first_block is None else options.first_block
    last = count - 1 - (0 if uniform else count // 16) if options.last_block is None else options.last_block
    if not first <= last < count:
        raise PdtrimError(
            f"first_block = {first} and last_block = {last} leave no block to remove units from: {model.name} has blocks 0 to "
            f"{count - 1}"
        )
    found = [(block, part) for block in range(first, last + 1) for part in PARTS if options.parts in (part, "both")]
    for block, part in found:
        _check(model, block, part)
    return found


def _check(model: BlockModel, block: int, part: Part) -> None:
    units, other = model.units(block), "attention" if part == "mlp" else "mlp"
    what = "K/V heads" if part == "attention" else "MLP channels"
    if not units.has(part):
        advice = f'say parts = "{other}"' if units.has(other) else "choose a method that removes whole blocks"
        raise PdtrimError(
            f"{model.name}: block {block} cannot lose {what}, because this family's projections are fused, or are experts: "
            f"{advice}"
        )
    rows = [weight.shape[0] for weight in weights(model, [(block, part)])[block, part][:-1]]
    uneven = [count for count in rows if count % units.count(part)]
    if uneven:
        raise PdtrimError(
            f"{model.name}: the {uneven[0]} query channels of block {block} do not divide into {units.count(part)} K/V heads: "
            'say parts = "mlp"'
        )


def weights(model: BlockModel, at: Iterable[Place]) -> dict[Place, list[nn.Parameter]]:
    """Return the weights of each place's projections: the input projections, then the output projection."""
    return {(block, part): [linear.weight for linear in model.units(block).projections(part)] for block, part in at}  # type: ignore[misc]


def rated(model: BlockModel, place: Place, importance_U: Tensor) -> Rated:
    """Return the units of a place with their importance; raises `PdtrimError` where one is not finite."""
    block, part = place
    if not bool(importance_U.isfinite().all()):
        raise PdtrimError(f'{model.name}: the importance of block {block}\'s {part} is not finite: say model.dtype = "float32"')
    return Rated(block, part, tuple(importance_U.tolist()), model.units(block).parameters(part))


def lowest(parts: Sequence[Rated], wanted: int, options: Options) -> Removal:
    """Return the shrinks that remove the least important units, close to `wanted` parameters.

    K/V heads take their share of the budget, rounded down; MLP channels the rest, since their steps are finer.
    Raises `PdtrimError` where the budget is too large, or smaller than any step.
    """
    if not wanted:
        return Removal()
    heads, channels = (_Queue(_steps([rated for rated in parts if rated.part == part], options)) for part in PARTS)
    most = heads.cost[-1] + channels.cost[-1]
    span = f"blocks {parts[0].block} to {parts[-1].block}"
    if wanted > most:
        raise PdtrimError(
            f"at most {most:,} parameters of {span} can be removed, as a unit of each part stays, and the budget is {wanted:,}: "
            'prune less, prune more blocks (first_block, last_block), or say parts = "both"'
        )
    taken = _shares(parts, heads, channels, wanted)
    gone: dict[Place, list[int]] = {}
    for queue, steps in zip((heads, channels), taken, strict=True):
        for each in chain(*queue.steps[:steps]):
            gone.setdefault((each.rated.block, each.rated.part), []).append(each.unit)
    if not gone:
        smallest = (channels if channels.steps else heads).cost[1]
        raise PdtrimError(
            f"the smallest step removes {smallest:,} parameters from {span}, and the budget is {wanted:,}: prune more, or say "
            'width = "per-block" or parts = "both", whose steps are smaller'
        )
    return Removal(Shrink(block, part, tuple(sorted(units))) for (block, part), units in gone.items())


def _shares(parts: Sequence[Rated], heads: _Queue, channels: _Queue, wanted: int) -> tuple[int, int]:
    """Return the numbers of steps of heads and of channels that together come closest to `wanted` parameters."""
    if not channels.steps:
        return heads.nearest(wanted), 0
    sizes = {part: sum(len(rated.importance) * rated.parameters for rated in parts if rated.part == part) for part in PARTS}
    # In integers: a share of exactly one head must not be rounded to a little less than one.
    first = heads.within(wanted * sizes["attention"] // sum(sizes.values()))
    enough = [count for count in range(first, len(heads.steps)) if wanted - heads.cost[count] <= channels.cost[-1]]
    count = enough[0] if enough else len(heads.steps)
    return count, channels.nearest(wanted - heads.cost[count])


def _steps(parts: Sequence[Rated], options: Options) -> list[list[_Unit]]:
    """Return the steps in which the units of one part are removed, over all given blocks."""
    lines = [[_Unit(rated, unit, rank) for rank, unit in enumerate(rated.order)] for rated in parts]
    if options.width == "uniform":
        if len({len(line) for line in lines}) > 1:
            raise PdtrimError(
                f'blocks differ in how much {parts[0].part} they have, so they cannot have one width: say width = "per-block"'
            )
        return [list(step) for step in zip(*lines, strict=True)]

    def turn(each: _Unit) -> tuple[float, float, int]:
        share = 0.0 if options.scope == "global" else (each.rank + 1) / len(each.rated.importance)
        return share, each.rated.importance[each.unit], each.rated.block

    return [[each] for each in sorted(chain(*lines), key=turn)]
