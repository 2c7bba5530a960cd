"""The splitters under a ceiling: it holds always, and what fits is spent well."""

from __future__ import annotations

import math
from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st

from pdtrim_core.api import CostModel, Drop, KvOnly, Merge, PdtrimError, Plan, Removal, Shrink, StageSplitter
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.search.driver import Ledger, drive
from pdtrim_core.testing.contracts import Table, split_on_table
from pdtrim_plugins.splitters import Budget, KvTail, MixedTail, Pop
from tests.unit.examples import given

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence


START = 50.0
REMOVAL = Removal(map(Drop, (1, 2, 3, 4)))
MERGE = Merge(keep=3, drop=2)
# Six equal blocks and next to no head: a block is a sixth of prefill, its K/V 0.04 %.
SIXTH = 1 / 6


def planted(gains: Mapping[int, float]) -> Callable[[Plan], float]:
    """Return a table in which each block that prefill is given back brings what is planted."""
    return lambda plan: START + sum(gain for block, gain in gains.items() if not plan.prefill.at(block))


def kept_in_prefill(plan: Plan) -> tuple[int, ...]:
    """Return the blocks that prefill keeps and decode loses."""
    return tuple(element.blocks[0] for element in plan.decode if element not in plan.prefill)


def sized(widths: Sequence[int], *, head: int = 0) -> CostModel:
    """Return the costs of six blocks that cost prefill so much each, a fifth of it for their K/V."""
    blocks = tuple(BlockSizes(5 * width, 5 * width, width, kv_width=8, attention_width=0) for width in widths)
    sizes = ModelSizes(blocks, parameters=5 * sum(widths) + head, head=head, bytes_per_number=4)
    return CostModel(len(widths), sizes)


def run(splitter: StageSplitter, removal: Removal, costs: CostModel, value: Callable[[Plan], float]) -> tuple[Plan, list[Plan]]:
    """Split on a table with sizes of its own; return the final plan and those asked for."""
    asked: list[Plan] = []
    ledger = Ledger(Table(value), notify=lambda candidate: asked.append(candidate.plan))
    _, final = drive(splitter.split(Plan.unified(removal), costs, Random(0)), ledger, label=splitter.name)
    return final, asked


def rugged(seed: int) -> Callable[[Plan], float]:
    return lambda plan: Random(f"{seed} {plan.prefill}").uniform(0, 100)


removals = st.sampled_from(
    [
        Removal(),
        Removal([Drop(5)]),
        REMOVAL,
        Removal([Drop(0), MERGE, Drop(5)]),
        Removal([Merge(0, 1, "frozen"), Merge(4, 5)]),
        Removal(map(Drop, range(5))),
    ]
)
widths = st.lists(st.integers(1, 50), min_size=6, max_size=6)
ceilings = st.integers(1, 100).map(lambda percent: percent / 100)


# Budget


@pytest.mark.parametrize(
    ("ceiling", "kept"),
    [(0.34, ()), (0.5, ()), (3 * SIXTH + 0.001, (2,)), (0.67, (1, 2)), (0.85, (1, 2, 4)), (1.0, (1, 2, 4))],
)
def test_the_ceiling_decides_how_much_is_given_back(ceiling: float, kept: tuple[int, ...]) -> None:
    value = planted({1: 4.0, 2: 6.0, 3: 0.0, 4: 2.0})
    final, _ = split_on_table(Budget(prefill_at_most=ceiling), REMOVAL, Table(value))
    assert kept_in_prefill(final) == kept


def test_a_ceiling_that_is_met_exactly_is_kept_to() -> None:
    costs = sized([10] * 6)
    assert costs.cost(Plan(Removal(map(Drop, (2, 3, 4))), REMOVAL), "prefill") == 0.5
    final, _ = run(Budget(prefill_at_most=0.5), REMOVAL, costs, planted({1: 1.0, 2: -1.0, 3: -1.0, 4: -1.0}))
    assert kept_in_prefill(final) == (1,)


def test_gain_per_cost_goes_before_gain() -> None:
    """Block 1 brings most, but blocks 2 and 3 bring more together for the same cost."""
    costs = sized([10, 20, 10, 10, 20, 10])
    value = planted({1: 6.0, 2: 4.0, 3: 4.0, 4: 1.0})
    final, asked = run(Budget(prefill_at_most=0.5), REMOVAL, costs, value)
    assert kept_in_prefill(final) == (2, 3)
    # The second round holds what still fits on top of block 2.
    assert [kept_in_prefill(plan) for plan in asked] == [(), (1,), (2,), (3,), (4,), (2, 3)]


def test_where_the_best_single_element_beats_the_path_it_is_taken() -> None:
    """Block 2 brings most for its cost, and then block 1, which alone brings more, does not fit any more."""
    costs = sized([10, 20, 10, 10, 20, 10])
    final, _ = run(Budget(prefill_at_most=0.5), REMOVAL, costs, planted({1: 6.0, 2: 4.0, 3: -1.0, 4: -1.0}))
    assert kept_in_prefill(final) == (1,)


def test_gains_are_measured_on_top_of_what_is_given_back() -> None:
    """Block 3 brings nothing until block 1 is back; block 2 nothing once it is."""

    def value(plan: Plan) -> float:
        back = {block for block in (1, 2, 3) if not plan.prefill.at(block)}
        return START + 5 * bool(back & {1, 2}) + 4 * (back >= {1, 3})

    final, _ = split_on_table(Budget(prefill_at_most=0.7), REMOVAL, Table(value))
    assert kept_in_prefill(final) == (1, 3)


def test_what_brings_nothing_is_not_given_back_however_much_fits() -> None:
    final, asked = split_on_table(Budget(prefill_at_most=1.0), REMOVAL, Table(planted({1: 0.0, 2: -1.0, 3: 0.0})))
    assert final == Plan.unified(REMOVAL)
    assert len(asked) == 1 + len(REMOVAL)


def test_ties_go_to_the_lower_block() -> None:
    final, _ = split_on_table(Budget(prefill_at_most=3 * SIXTH + 0.001), REMOVAL, Table(planted(dict.fromkeys((2, 3, 4), 3.0))))
    assert kept_in_prefill(final) == (2,)


def test_a_merge_is_given_back_as_a_pair_with_its_shadow() -> None:
    """Two blocks of 10 and the merged block's K/V of 2 in place of one block: 12 of 60 more."""
    removal, costs = Removal([Drop(0), MERGE, Drop(5)]), sized([10] * 6)
    value = planted({2: 5.0})
    exactly = (20 + 20 + 2) / 60
    assert kept_in_prefill(run(Budget(prefill_at_most=exactly + 1e-9), removal, costs, value)[0]) == (2,)
    assert kept_in_prefill(run(Budget(prefill_at_most=exactly - 1e-3), removal, costs, value)[0]) == ()


def test_a_ceiling_below_prefill_like_decode_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        split_on_table(Budget(prefill_at_most=0.25), REMOVAL, Table(planted({})))
    assert str(caught.value) == (
        "splitter budget: prefill_at_most = 0.25 is out of reach, since prefill = decode, the cheapest prefill of this "
        "splitter, costs 0.3334 of the dense one: raise prefill_at_most to that, remove more blocks, or use splitter = "
        '"pop", which can go lower'
    )
    assert split_on_table(Budget(prefill_at_most=0.3334), REMOVAL, Table(planted({})))[0] == Plan.unified(REMOVAL)


@given(st.integers(0, 10_000), widths, removals, ceilings, st.integers(0, 5000))
def test_budget_keeps_to_its_ceiling_and_returns_the_best_it_measured(
    seed: int, six: list[int], removal: Removal, ceiling: float, head: int
) -> None:
    costs, value = sized(six, head=head), rugged(seed)
    splitter = Budget(prefill_at_most=ceiling)
    if costs.cost(Plan.unified(removal), "prefill") > ceiling:
        with pytest.raises(PdtrimError, match="is out of reach"):
            run(splitter, removal, costs, value)
        return
    final, asked = run(splitter, removal, costs, value)
    assert {plan.decode for plan in (final, *asked)} == {removal}
    assert max(costs.cost(plan, "prefill") for plan in asked) <= ceiling
    assert final in asked
    assert round(value(final), 4) == max(round(value(plan), 4) for plan in asked)
    assert len(asked) <= (splitter.steps(Plan.unified(removal)) or 0)


@given(widths, ceilings, st.lists(st.integers(-50, 50), min_size=4, max_size=4))
def test_a_higher_ceiling_never_loses_points_where_all_blocks_cost_the_same(
    six: list[int], ceiling: float, tenths: list[int]
) -> None:
    value = planted({block: tenth / 10 for block, tenth in zip((1, 2, 3, 4), tenths, strict=True)})
    costs = sized([six[0]] * 6)
    low, high = (max(0.34, share) for share in (ceiling, min(1.0, ceiling + 0.2)))
    score = [value(run(Budget(prefill_at_most=share), REMOVAL, costs, value)[0]) for share in (low, high)]
    assert score[0] <= score[1] + 1e-9


# Pop


@pytest.mark.parametrize(
    ("ceiling", "slots"), [(1.0, ()), (0.87, (5,)), (0.85, (5, 4)), (0.5, (5, 4, 3, 2)), (0.2, (5, 4, 3, 2, 1, 0))]
)
def test_the_ceiling_decides_how_many_of_the_deepest_blocks_are_passed_by(ceiling: float, slots: tuple[int, ...]) -> None:
    """Each saves four fifths of a sixth: prefill costs 0.867, 0.733, 0.6, 0.467, 0.333, 0.2."""
    final, asked = run(Pop(prefill_at_most=ceiling), Removal(), sized([10] * 6), planted({}))
    assert final == Plan(prefill=Removal(map(KvOnly, slots)))
    assert asked == [final]
    assert Pop().steps(Plan()) == len(asked)


def test_what_decode_drops_stays_dropped_and_costs_nothing() -> None:
    removal = Removal(map(Drop, (3, 5)))
    final, _ = run(Pop(prefill_at_most=0.5), removal, sized([10] * 6), planted({}))
    assert final == Plan(Removal([Drop(3), Drop(5), KvOnly(4), KvOnly(2)]), removal)


def test_prefill_like_decode_is_left_as_it_is_where_it_is_cheap_enough() -> None:
    final, _ = run(Pop(prefill_at_most=0.7), REMOVAL, sized([10] * 6), planted({1: 50.0}))
    assert final == Plan.unified(REMOVAL)


@pytest.mark.parametrize("merge", [MERGE, Merge(2, 3, "frozen")], ids=["shadow", "frozen"])
def test_a_merged_pair_is_passed_by_as_one(merge: Merge) -> None:
    """Five slots of 10 in 60: 0.833, then 0.7 and 0.567 without blocks 5 and 4, 0.433 without the pair."""
    removal, costs = Removal([merge]), sized([10] * 6)
    deepest = [KvOnly(5), KvOnly(4)]
    assert run(Pop(prefill_at_most=0.6), removal, costs, planted({}))[0] == Plan(Removal([merge, *deepest]), removal)
    final, _ = run(Pop(prefill_at_most=0.5), removal, costs, planted({}))
    assert final == Plan(Removal([KvOnly(2), *deepest]), removal)
    assert [source.source for source in final.kv_map(6)] == ["run", "run", "kv-only", "kv-only", "kv-only"]


def test_a_plan_with_a_prefill_of_its_own_begins_at_prefill_like_decode() -> None:
    plan = Plan(prefill=Removal([KvOnly(0)]), decode=Removal([Drop(5)]))
    asks = Pop(prefill_at_most=0.84).split(plan, sized([10] * 6), Random(0))
    assert next(asks) == Plan.unified(Removal([Drop(5)]))


def test_a_ceiling_below_the_kv_of_all_blocks_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        run(Pop(prefill_at_most=0.19), Removal(), sized([10] * 6), planted({}))
    assert str(caught.value) == (
        "splitter pop: prefill_at_most = 0.19 is out of reach, since the K/V of all blocks that decode runs cost 0.2 of the "
        "dense prefill (the head included): raise prefill_at_most to that, or remove more blocks"
    )


@given(widths, removals, ceilings, st.integers(0, 5000))
def test_pop_keeps_to_its_ceiling_and_passes_by_no_more_than_it_must(
    six: list[int], removal: Removal, ceiling: float, head: int
) -> None:
    costs = sized(six, head=head)
    slots = Plan(decode=removal).slots(6)
    drops = [element for element in removal if isinstance(element, Drop)]
    least = costs.cost(Plan(Removal([*drops, *(KvOnly(slot.block) for slot in slots)]), removal), "prefill")
    if least > ceiling:
        with pytest.raises(PdtrimError, match=f"cost {math.ceil(least * 10_000) / 10_000} of the dense prefill"):
            run(Pop(prefill_at_most=ceiling), removal, costs, planted({}))
        return
    final, asked = run(Pop(prefill_at_most=ceiling), removal, costs, planted({}))
    assert asked == [final]
    assert final.decode == removal
    assert costs.cost(final, "prefill") <= ceiling
    passed = [element for element in final.prefill if isinstance(element, KvOnly)]
    assert [element.slot for element in passed] == [slot.block for slot in slots][len(slots) - len(passed) :]
    assert all(element in removal for element in final.prefill if element not in passed)
    if passed:
        own = removal.at(passed[0].slot)
        one_fewer = Plan(final.prefill.without(passed[0]).with_(*own), removal)
        assert costs.cost(one_fewer, "prefill") > ceiling


# KvTail


@pytest.mark.parametrize(
    ("ceiling", "prefill"),
    [
        (1.0, Removal()),
        (0.87, Removal([KvOnly(5)])),
        (0.8, Removal([KvOnly(5), Drop(4)])),
        (0.6, Removal([KvOnly(5), Drop(4), KvOnly(3)])),
    ],
)
def test_in_front_of_the_tail_prefill_is_dense_and_in_it_a_lost_block_goes(ceiling: float, prefill: Removal) -> None:
    """Block 4 leaves 0.7 of prefill behind it once block 5 is passed by, and has no K/V to keep."""
    removal = Removal(map(Drop, (1, 4)))
    final, asked = run(KvTail(prefill_at_most=ceiling), removal, sized([10] * 6), planted({}))
    assert final == Plan(prefill, removal)
    assert asked == [final]


@pytest.mark.parametrize("merge", [MERGE, Merge(2, 3, "frozen"), Merge(2, 4)], ids=["shadow", "frozen", "of three"])
def test_a_dense_prefill_passes_by_the_run_of_a_merge_as_one(merge: Merge) -> None:
    removal = Removal([merge])
    final, _ = run(KvTail(prefill_at_most=0.45), removal, sized([10] * 6), planted({}))
    assert final.prefill == Removal(KvOnly(block) for block in (2, 4, 5) if block == 2 or block not in merge.blocks)
    assert {source.source for source in final.kv_map(6)} == {"run", "kv-only"}


def test_a_shrunk_block_in_the_tail_keeps_the_kv_of_the_heads_that_decode_has() -> None:
    shrinks = [Shrink(5, "attention", (1,)), Shrink(5, "mlp", (0, 2)), Shrink(0, "mlp", (3,))]
    blocks = tuple(
        BlockSizes(50, 50, 10, kv_width=8, attention_width=0, units={"attention": (2, 10), "mlp": (5, 4)}) for _ in range(6)
    )
    costs = CostModel(6, ModelSizes(blocks, parameters=300, head=0, bytes_per_number=4))
    for rest, above in (("dense", []), ("decode", shrinks[2:])):
        final, _ = run(KvTail.model_validate({"prefill_at_most": 0.9, "rest": rest}), Removal(shrinks), costs, planted({}))
        assert final.prefill == Removal([*above, KvOnly(5)])
    # Five whole blocks, and half the K/V of the sixth.
    assert costs.cost(Plan(Removal([KvOnly(5)]), Removal(shrinks)), "prefill") == pytest.approx((5 * 50 + 5) / 300)


def test_behind_the_last_kv_that_decode_reads_nothing_is_passed_by_twice() -> None:
    """Prefill is truncated there in any case, and the ceiling counts that: blocks 4 and 5 are free."""
    removal = Removal([Drop(5)])
    costs = CostModel(6, sized([10] * 6).sizes, truncated_prefill=True)
    untouched, _ = run(KvTail(prefill_at_most=0.7), removal, costs, planted({}))
    assert untouched == Plan(decode=removal)
    final, _ = run(KvTail(prefill_at_most=0.65), removal, costs, planted({}))
    assert final.prefill == Removal([Drop(5), KvOnly(4), KvOnly(3)])
    assert costs.cost(final, "prefill") == pytest.approx((3 + 2 / 5) / 6)


@given(widths, removals, ceilings, st.integers(0, 5000))
def test_over_what_decode_runs_the_tail_is_that_of_pop(six: list[int], removal: Removal, ceiling: float, head: int) -> None:
    costs = sized(six, head=head)
    try:
        expected = run(Pop(prefill_at_most=ceiling), removal, costs, planted({}))
    except PdtrimError as error:
        told = str(error).replace("splitter pop", "splitter kv-tail")
        for splitter in (KvTail(prefill_at_most=ceiling), KvTail(prefill_at_most=ceiling, rest="decode")):
            with pytest.raises(PdtrimError) as caught:
                run(splitter, removal, costs, planted({}))
            assert str(caught.value) == told
        return
    assert run(KvTail(prefill_at_most=ceiling, rest="decode"), removal, costs, planted({})) == expected


@given(widths, removals, ceilings)
def test_a_dense_prefill_has_no_longer_tail_than_its_ceiling_demands(six: list[int], removal: Removal, ceiling: float) -> None:
    costs = sized(six)
    try:
        final, _ = run(KvTail(prefill_at_most=ceiling), removal, costs, planted({}))
    except PdtrimError:
        return
    assert costs.cost(final, "prefill") <= ceiling
    if final.prefill:
        shorter = Plan(final.prefill.without(final.prefill.elements[0]), removal)
        assert costs.cost(shorter, "prefill") > ceiling
        first = final.prefill.elements[0].blocks[0]
        passed = {block for block, state in enumerate(final.states("prefill", 6)) if state != "run"}
        assert passed == set(range(first, 6))


# Mixed tail


def test_each_length_of_the_tail_is_measured_with_the_deepest_elements_that_it_needs() -> None:
    """A K/V-only block saves 0.133, a dropped one 0.167; 0.6 is too low for two dropped ones."""
    removal = Removal(map(Drop, (1, 3)))
    final, asked = run(MixedTail(prefill_at_most=0.6), removal, sized([10] * 6), planted({}))
    prefills = [Removal([KvOnly(5), Drop(3), Drop(1)]), Removal([KvOnly(5), KvOnly(4), Drop(3)])]
    assert [plan.prefill for plan in asked] == prefills
    assert final == asked[0]


@pytest.mark.parametrize("kept", [1, 4])
def test_of_the_lengths_of_a_tail_the_one_that_measures_best_is_taken(kept: int) -> None:
    removal = Removal(map(Drop, (1, 3)))
    final, _ = run(MixedTail(prefill_at_most=0.6), removal, sized([10] * 6), planted({kept: 5.0}))
    assert not final.prefill.at(kept)


def test_nothing_that_is_not_needed_goes_beside_a_tail() -> None:
    removal = Removal([Drop(2)])
    final, asked = run(MixedTail(prefill_at_most=1.0), removal, sized([10] * 6), planted({}))
    assert asked == [final] == [Plan(decode=removal)]


@given(widths, removals, ceilings, st.integers(0, 1000))
def test_a_mixed_tail_keeps_to_its_ceiling_and_returns_the_best_it_measured(
    six: list[int], removal: Removal, ceiling: float, seed: int
) -> None:
    costs, value = sized(six), rugged(seed)
    try:
        final, asked = run(MixedTail(prefill_at_most=ceiling), removal, costs, value)
    except PdtrimError as problem:
        assert "prefill_at_most" in str(problem)  # noqa: PT017 - which one is refused depends on the widths
        return
    assert all(costs.cost(plan, "prefill") <= ceiling and plan.decode == removal for plan in asked)
    assert value(final) == max(map(value, asked))
    tail_alone, _ = run(KvTail(prefill_at_most=ceiling), removal, costs, value)
    assert asked[-1] == tail_alone


@pytest.mark.parametrize("share", [0.0, -0.5, 1.01])
@pytest.mark.parametrize("splitter", [Budget, KvTail, MixedTail, Pop])
def test_a_ceiling_is_a_share(splitter: type[StageSplitter], share: float) -> None:
    with pytest.raises(ValueError, match="prefill_at_most"):
        splitter.model_validate({"prefill_at_most": share})
