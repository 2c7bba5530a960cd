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

    from pdtrim_core.api import BlockModel, PruneFacts

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


class Sized(NamedTuple):
    """The units of one part of one block: how many it has, and the parameters in each."""

    block: int
    part: Part
    units: int
    parameters: int


@dataclass(frozen=True)
class Rated:
    """The units of one part of one block: the importance of each (lowest removed first), and the parameters in each."""

    block: int
    part: Part
    importance: tuple[float, ...]
    parameters: int

    @property
    def sized(self) -> Sized:
        """The units without their importance."""
        return Sized(self.block, self.part, len(self.importance), self.parameters)

    @property
    def order(self) -> list[int]:
        """The units in the order of removal, without the most important one, which always stays. Ties go to the lower unit."""
        return sorted(range(len(self.importance)), key=lambda unit: (self.importance[unit], unit))[:-1]


class _Unit(NamedTuple):
    rated: Rated
    unit: int
    rank: int


@dataclass(frozen=True)
class _Costs:
    """The parameters that go with the first 0, 1, 2 and so on steps; a step is the units that are removed together."""

    cost: Sequence[int]

    @property
    def steps(self) -> int:
        return len(self.cost) - 1

    def nearest(self, wanted: int) -> int:
        """Return the number of steps whose parameters come closest to `wanted`; ties take fewer."""
        above = min(bisect_left(self.cost, wanted), self.steps)
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


def problems(facts: PruneFacts, options: Options) -> list[str]:
    """Return why units cannot be removed so, whatever their importance is."""
    try:
        found = [Sized(block, part, *facts.sizes.blocks[block].units[part]) for block, part in places(facts, options)]
        if facts.parameters:
            _check_most(found, facts.parameters)
            costs = [_known_costs([sized for sized in found if sized.part == part], options) for part in PARTS]
            if costs[0] is not None and costs[1] is not None:
                _taken(found, costs[0], costs[1], facts.parameters)
    except PdtrimError as error:
        return [str(error)]
    return []


def places(facts: PruneFacts, options: Options) -> list[Place]:
    """Return the (block, part) places that units may be removed from. Raises `PdtrimError` where a block has none."""
    if options.scope == "global" and options.width == "uniform":
        raise PdtrimError('scope = "global" gives each block its own width: say width = "per-block", or scope = "local"')
    count, uniform = facts.block_count, options.width == "uniform"
    first = (0 if uniform else count // 8) if options.first_block is None else options.first_block
    last = count - 1 - (0 if uniform else count // 16) if options.last_block is None else options.last_block
    if not first <= last < count:
        raise PdtrimError(
            f"first_block = {first} and last_block = {last} leave no block to remove units from: {facts.model} has blocks 0 to "
            f"{count - 1}"
        )
    found = [(block, part) for block in range(first, last + 1) for part in PARTS if options.parts in (part, "both")]
    for block, part in found:
        units, other = facts.sizes.blocks[block].units, "attention" if part == "mlp" else "mlp"
        what = "K/V heads" if part == "attention" else "MLP channels"
        if part not in units:
            advice = f'say parts = "{other}"' if other in units else "choose a method that removes whole blocks"
            raise PdtrimError(
                f"{facts.model}: block {block} cannot lose {what}, because this family's projections are fused, or are experts: "
                f"{advice}"
            )
    return found


def check_rows(model: BlockModel, at: Iterable[Place]) -> None:
    """Raise `PdtrimError` where the rows of a projection do not divide into a place's units."""
    for (block, part), of_place in weights(model, at).items():
        units = model.units(block).count(part)
        uneven = [weight.shape[0] for weight in of_place[:-1] if weight.shape[0] % units]
        if uneven:
            raise PdtrimError(
                f"{model.name}: the {uneven[0]} query channels of block {block} do not divide into {units} K/V heads: "
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
    steps = [_steps([rated for rated in parts if rated.part == part], options) for part in PARTS]
    costs = [_Costs([0, *accumulate(sum(unit.rated.parameters for unit in step) for step in of_part)]) for of_part in steps]
    found = [rated.sized for rated in parts]
    _check_most(found, wanted)
    gone: dict[Place, list[int]] = {}
    for of_part, count in zip(steps, _taken(found, costs[0], costs[1], wanted), strict=True):
        for each in chain(*of_part[:count]):
            gone.setdefault((each.rated.block, each.rated.part), []).append(each.unit)
    return Removal(Shrink(block, part, tuple(sorted(units))) for (block, part), units in gone.items())


def _check_most(found: Sequence[Sized], wanted: int) -> None:
    """Raise `PdtrimError` where places cannot lose `wanted` parameters."""
    most = sum((sized.units - 1) * sized.parameters for sized in found)
    if wanted > most:
        raise PdtrimError(
            f"at most {most:,} parameters of {_span(found)} can be removed, as a unit of each part stays, and the budget is "
            f'{wanted:,}: prune less, prune more blocks (first_block, last_block), or say parts = "both"'
        )


def _taken(found: Sequence[Sized], heads: _Costs, channels: _Costs, wanted: int) -> tuple[int, int]:
    """Return the numbers of steps of heads and of channels that are taken. Raises `PdtrimError` where any step is too large."""
    taken = _shares(found, heads, channels, wanted)
    if not any(taken):
        smallest = (channels if channels.steps else heads).cost[1]
        raise PdtrimError(
            f"the smallest step removes {smallest:,} parameters from {_span(found)}, and the budget is {wanted:,}: prune more, "
            'or say width = "per-block" or parts = "both", whose steps are smaller'
        )
    return taken


def _span(found: Sequence[Sized]) -> str:
    return f"blocks {found[0].block} to {found[-1].block}"


def _shares(found: Sequence[Sized], heads: _Costs, channels: _Costs, wanted: int) -> tuple[int, int]:
    """Return the numbers of steps of heads and of channels that together come closest to `wanted` parameters."""
    if not channels.steps:
        return heads.nearest(wanted), 0
    sizes = {part: sum(sized.units * sized.parameters for sized in found if sized.part == part) for part in PARTS}
    # In integers: a share of exactly one head must not be rounded to a little less than one.
    first = heads.within(wanted * sizes["attention"] // sum(sizes.values()))
    enough = [count for count in range(first, heads.steps) if wanted - heads.cost[count] <= channels.cost[-1]]
    count = enough[0] if enough else heads.steps
    return count, channels.nearest(wanted - heads.cost[count])


def _known_costs(found: Sequence[Sized], options: Options) -> _Costs | None:
    """Return the costs of the steps of one part; None where they depend on which units are the least important."""
    if not found:
        return _Costs([0])
    if options.width == "uniform":
        _check_alike([sized.units for sized in found], found[0].part)
        steps, each = found[0].units - 1, sum(sized.parameters for sized in found)
    elif len({sized.parameters for sized in found}) == 1:
        steps, each = sum(sized.units - 1 for sized in found), found[0].parameters
    else:
        return None
    return _Costs(range(0, steps * each + 1, each))


def _check_alike(counts: Iterable[int], part: Part) -> None:
    if len(set(counts)) > 1:
        raise PdtrimError(f'blocks differ in how much {part} they have, so they cannot have one width: say width = "per-block"')


def _steps(parts: Sequence[Rated], options: Options) -> list[list[_Unit]]:
    """Return the steps in which the units of one part are removed, over all given blocks."""
    lines = [[_Unit(rated, unit, rank) for rank, unit in enumerate(rated.order)] for rated in parts]
    if options.width == "uniform":
        if parts:
            _check_alike(map(len, lines), parts[0].part)
        return [list(step) for step in zip(*lines, strict=True)]

    def turn(each: _Unit) -> tuple[float, float, int]:
        share = 0.0 if options.scope == "global" else (each.rank + 1) / len(each.rated.importance)
        return share, each.rated.importance[each.unit], each.rated.block

    return [[each] for each in sorted(chain(*lines), key=turn)]
