"""The least that prefill can cost: bounds that hold for every removal, and that one of them reaches."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import strategies as st

from pdtrim_core.api import CostModel, Drop, KvOnly, PdtrimError, Plan, Removal, StageFacts
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from tests.unit.examples import given

BLOCKS = 5


def sized(blocks: list[tuple[int, int]], *, truncated: bool, head: int = 7) -> CostModel:
    """Return the costs of blocks that have so many parameters, with so many of K and V among them."""
    made = tuple(BlockSizes(kv + rest, kv + rest, kv, kv_width=8, attention_width=0, kv_norms=1) for kv, rest in blocks)
    sizes = ModelSizes(made, parameters=sum(block.parameters for block in made) + head, head=head, bytes_per_number=4)
    return CostModel(len(blocks), sizes, truncated_prefill=truncated)


blocks = st.lists(st.tuples(st.integers(1, 9), st.integers(2, 50)), min_size=BLOCKS, max_size=BLOCKS)


@given(blocks, st.integers(0, BLOCKS - 1), st.booleans())
def test_the_bounds_are_the_least_over_all_removals(of: list[tuple[int, int]], count: int, truncated: bool) -> None:
    costs = sized(of, truncated=truncated)
    facts = StageFacts(costs, count)
    unified, least = [], []
    for gone in combinations(range(BLOCKS), count):
        decode = Removal(map(Drop, gone))
        unified.append(costs.cost(Plan.unified(decode), "prefill"))
        kv = [KvOnly(block) for block in range(BLOCKS) if block not in gone]
        least.append(costs.cost(Plan(decode.with_(*kv), decode), "prefill"))
    assert facts.least_unified_prefill == pytest.approx(min(unified), rel=1e-12)
    assert facts.least_prefill == pytest.approx(min(least), rel=1e-12)
    assert facts.least_prefill <= facts.least_unified_prefill + 1e-12


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("count", range(4))
def test_a_unified_plan_costs_as_much_as_one_without_its_own_blocks(count: int, truncated: bool) -> None:
    costs = sized([(2, 8)] * BLOCKS, truncated=truncated)
    plan = Plan.unified(Removal(Drop(block) for block in range(count)))
    facts = StageFacts(costs, 0)
    assert facts.blocks_of_unified(costs.cost(plan, "prefill")) == pytest.approx(count)


def test_where_parts_of_blocks_go_nothing_is_certain() -> None:
    facts = StageFacts(sized([(2, 8)] * BLOCKS, truncated=True), None)
    assert (facts.least_prefill, facts.least_unified_prefill) == (0.0, 0.0)


def test_without_sizes_no_bound_is_known() -> None:
    with pytest.raises(PdtrimError, match="without the model's sizes"):
        _ = StageFacts(CostModel(BLOCKS), 1).least_prefill
