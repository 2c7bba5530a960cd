"""Searching over the attention and the MLP of blocks apart, with a budget of bytes."""

from __future__ import annotations

from random import Random

import pytest

from pdtrim_core.api import CostModel, DropPart, PdtrimError, Plan, Removal, Scores, Searcher, SearchSpace
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import PARTS, Drop, Element
from pdtrim_core.search.space import part_space
from pdtrim_core.testing.contracts.tables import Table, rugged, search_on_table, stopped_on_table
from pdtrim_plugins.searchers.annealing import Annealing, Restarts
from pdtrim_plugins.searchers.stepwise import Sequential

BLOCKS = 6
# A norm for each part stays with the block; the MLP has as much as three times its attention.
BLOCK = BlockSizes(404, 404, 40, 8, 8, parts={"attention": (100, 100), "mlp": (300, 300)})
SIZES = ModelSizes((BLOCK,) * BLOCKS, 404 * BLOCKS + 50, 50, 2)
SEARCHERS: tuple[Searcher, ...] = (Sequential(), Sequential(swaps=2), Annealing(), Restarts(chains=2))


def space_of(count: int, *, sizes: ModelSizes = SIZES) -> SearchSpace:
    scores = Scores(block=(0.1, 0.9, 0.4, 0.8, 0.3, 0.2), pair=(0.5,) * 5, similarity=True)
    return part_space(scores, count, CostModel(BLOCKS, sizes))


def test_a_space_of_parts_begins_with_the_safest_blocks_part_by_part() -> None:
    space = space_of(2)
    assert len(space.elements) == 2 * BLOCKS
    assert space.first == Removal(DropPart(block, part) for block in (1, 3) for part in PARTS)
    assert space.size(space.first) == 2
    assert space.problems(Plan.unified(space.first)) == []


def test_sizes_are_those_of_the_bytes_that_decode_reads() -> None:
    space = space_of(2)
    eight = Removal(DropPart(block, "attention") for block in range(5))
    assert space.size(eight) == pytest.approx(500 / 404)
    assert not space.is_full(eight)
    told = ["its decode reads as many bytes less as 1.24 blocks have, not as 2"]
    assert space.problems(Plan.unified(eight)) == told
    # Within half of the smaller part.
    assert space.is_full(Removal([DropPart(0, "mlp"), DropPart(1, "mlp"), DropPart(2, "attention"), DropPart(3, "attention")]))
    assert not space.is_full(Removal([DropPart(0, "mlp"), DropPart(1, "mlp"), DropPart(2, "attention")]))


def test_attention_goes_from_all_blocks_but_one() -> None:
    space = space_of(4)
    assert not space.fits(Removal(DropPart(block, "attention") for block in range(BLOCKS)))
    assert space.fits(Removal(DropPart(block, "attention") for block in range(1, BLOCKS)))


def test_a_neighbour_has_full_size_and_every_mixture_is_reached() -> None:
    space, rng = space_of(2), Random(0)
    removal, met = space.first, set()
    for _ in range(300):
        neighbour = space.neighbour(removal, rng)
        assert space.is_full(neighbour)
        assert space.fits(neighbour)
        removal = neighbour
        met.add(sum(part.part == "mlp" for part in removal.dropped_parts))
    assert met == {1, 2}
    assert space.neighbour(Removal(), rng) == Removal()


def test_blocks_of_unlike_sizes_come_as_near_as_their_parts_allow() -> None:
    small = BlockSizes(204, 204, 40, 8, 8, parts={"attention": (100, 100), "mlp": (100, 100)})
    space = space_of(3, sizes=ModelSizes((BLOCK, small) * 3, 304 * BLOCKS + 50, 50, 2))
    assert space.is_full(space.first)
    saved = SIZES.bytes_per_number * sum(404 if block in (0, 2, 4) else 204 for block in range(BLOCKS)) / BLOCKS * 3
    found = space.costs.sizes
    assert found is not None
    off = found.decode_bytes(Plan()) - found.decode_bytes(Plan(decode=space.first)) - saved
    assert abs(off) <= 100


@pytest.mark.parametrize("count", [0, 1, 3, 4])
@pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda searcher: searcher.name)
def test_searchers_find_removals_of_full_size(searcher: Searcher, count: int) -> None:
    space = space_of(count)
    found, requested = search_on_table(searcher, space, Table(rugged))
    assert found is not None
    assert space.problems(found.plan) == []
    assert search_on_table(searcher, space, Table(rugged)) == (found, requested)


def test_sequential_takes_what_costs_least_for_its_bytes() -> None:
    """Each attention costs 2 points and each MLP 3, so that MLPs cost less a byte; block 1 costs nothing at all."""

    def value(plan: Plan) -> float:
        costs = {"attention": 2.0, "mlp": 3.0}
        return 100 - sum(costs[part.part] for part in plan.decode.dropped_parts if part.block != 1)

    found, _ = search_on_table(Sequential(protect_first=0, protect_last=0), space_of(2), Table(value))
    assert found is not None
    mlps = {part.block for part in found.plan.decode.dropped_parts if part.part == "mlp"}
    assert len(mlps) == 2
    assert {DropPart(1, "attention"), DropPart(1, "mlp")} <= set(found.plan.decode)


def test_sequential_keeps_to_its_protected_blocks_and_says_where_that_leaves_too_little() -> None:
    found, _ = search_on_table(Sequential(protect_first=2, protect_last=1), space_of(2), Table(rugged))
    assert found is not None
    assert {element.block for element in found.plan.decode.dropped_parts} <= {2, 3, 4}
    with pytest.raises(PdtrimError) as caught:
        search_on_table(Sequential(protect_first=3, protect_last=2), space_of(2), Table(rugged))
    assert str(caught.value) == (
        "searcher 'sequential' has removed as many bytes as 1.00 blocks have, and 2 are asked for, but no part that is left "
        "fits: lower searcher.protect_first or searcher.protect_last, or ask for another number"
    )


@pytest.mark.parametrize("after", [1, 5, 20])
@pytest.mark.parametrize("searcher", SEARCHERS, ids=lambda searcher: searcher.name)
def test_a_search_whose_time_is_over_ends_with_a_removal_of_full_size(searcher: Searcher, after: int) -> None:
    space = space_of(3)
    assert space.problems(stopped_on_table(searcher, space, Table(rugged), after=after)) == []


def test_whole_blocks_are_counted_as_ever() -> None:
    elements: tuple[Element, ...] = tuple(map(Drop, range(BLOCKS)))
    scores = Scores(block=(0.5,) * BLOCKS, pair=(), similarity=True)
    space = SearchSpace(2, elements, (1.0,) * BLOCKS, Removal(elements[:2]), scores, CostModel(BLOCKS))
    assert (space.size(space.first), space.is_full(space.first)) == (2, True)
    assert space.problems(Plan.unified(Removal(elements[:1]))) == ["its decode removes 1 blocks, not 2"]


def test_only_searchers_that_say_so_search_parts() -> None:
    from pdtrim_core.host.host import load_plugins

    able = {one.component.name for one in load_plugins().of_kind("searcher") if getattr(one.component, "parts", False)}
    assert able == {"sequential", "annealing", "restarts"}
