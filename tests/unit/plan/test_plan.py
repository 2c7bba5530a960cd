"""The plan and its law: every block that decode runs finds its K/V in what prefill computed."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import strategies as st

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink
from pdtrim_core.plan.plan import KvSource, Plan, Slot
from tests.unit.examples import given
from tests.unit.plan.plans import BLOCKS, decodes, lawful, plan

LAW = "this plan breaks the K/V law: "


# The law


@pytest.mark.parametrize(
    ("prefill", "decode", "problem"),
    [
        ([Drop(2)], [], "decode runs block 2, but prefill removes it and computes no K/V for it"),
        ([Drop(2)], [Shrink(2, "mlp", (0,))], "decode runs block 2, but prefill removes it and computes no K/V for it"),
        (
            [Merge(2, 3)],
            [],
            (
                "decode runs block 2, but prefill merges it and computes no K/V for it; "
                "decode runs block 3, but prefill merges it and computes no K/V for it"
            ),
        ),
        ([Merge(2, 3)], [Drop(2)], "decode runs block 3, but prefill merges it and computes no K/V for it"),
        ([], [KvOnly(4)], "decode has kv:4, but K/V-only is a state of prefill"),
        ([KvOnly(4)], [Drop(4)], "prefill keeps the K/V of block 4, but decode does not run it: use a drop"),
        ([KvOnly(4), Drop(5)], [Merge(4, 5)], "prefill has kv:4 for the merge 4+5, and also 5 inside it; {merge}5"),
        ([KvOnly(4), KvOnly(5)], [Merge(4, 5)], "prefill has kv:4 for the merge 4+5, and also kv:5 inside it; {merge}kv:5"),
        (
            [KvOnly(4), Shrink(5, "mlp", (0,))],
            [Merge(4, 5)],
            "prefill has kv:4 for the merge 4+5, and also 5.mlp-1 inside it",
        ),
        ([KvOnly(5)], [Merge(4, 5)], "{merge}kv:5"),
        ([Drop(4)], [Merge(4, 5)], "{merge}4"),
        ([Drop(5)], [Merge(4, 5)], "{merge}5"),
        ([Merge(5, 4)], [Merge(4, 5)], "{merge}4+5"),
        ([Merge(4, 5, "frozen")], [Merge(4, 5)], "{merge}4+5"),
        ([Shrink(4, "attention", (0,))], [Merge(4, 5)], "{merge}4.attention-1"),
        ([Shrink(5, "attention", (0,))], [Merge(4, 5)], "{merge}5.attention-1"),
        ([Merge(5, 6)], [Drop(6), Merge(4, 5)], "{merge}5+6"),
        ([Shrink(1, "attention", (0, 2))], [], "decode runs K/V heads [0, 2] of block 1, but prefill has removed them"),
        (
            [Shrink(1, "attention", (0, 1, 2))],
            [Shrink(1, "attention", (1,))],
            "decode runs K/V heads [0, 2] of block 1, but prefill has removed them",
        ),
        (
            [Shrink(1, "attention", (0,))],
            [Shrink(1, "mlp", (0,))],
            "decode runs K/V heads [0] of block 1, but prefill has removed them",
        ),
        (
            [DropPart(2, "attention")],
            [DropPart(2, "mlp")],
            "decode runs the attention of block 2, but prefill removes it and computes no K/V for it",
        ),
        ([Drop(2)], [DropPart(2, "mlp")], "decode runs block 2, but prefill removes it and computes no K/V for it"),
        (
            [KvOnly(2)],
            [DropPart(2, "attention")],
            "prefill keeps the K/V of block 2, but decode does not run its attention: use a drop",
        ),
        (
            [KvOnly(2)],
            [DropPart(2, "attention"), DropPart(2, "mlp")],
            "prefill keeps the K/V of block 2, but decode does not run it: use a drop",
        ),
        (
            [Merge(2, 3)],
            [DropPart(2, "attention"), Drop(3)],
            "decode runs block 2, but prefill merges it and computes no K/V for it",
        ),
        ([DropPart(5, "attention")], [Merge(4, 5)], "{merge}5.attention"),
        (
            [Shrink(1, "attention", (0,))],
            [DropPart(1, "mlp")],
            "decode runs K/V heads [0] of block 1, but prefill has removed them",
        ),
    ],
    ids=str,
)
def test_prefill_may_not_remove_what_decode_reads(prefill: list[Element], decode: list[Element], problem: str) -> None:
    merge = (
        "decode has the merge 4+5, but prefill has {}: it must run those blocks, merge them the same way, or keep the merged "
        "block's K/V only (kv:4)"
    )
    if "{merge}" in problem:
        before, shown = problem.split("{merge}")
        problem = before + merge.format(shown)
    with pytest.raises(PlanError) as caught:
        plan(prefill, decode)
    assert str(caught.value) == LAW + problem


@pytest.mark.parametrize(
    ("prefill", "decode"),
    [
        ([], [Drop(2)]),
        ([Drop(2)], [Drop(2)]),
        ([KvOnly(2)], []),
        ([KvOnly(2)], [Shrink(2, "attention", (0,))]),
        ([Merge(2, 3)], [Drop(2), Drop(3)]),
        ([Drop(2), Drop(3)], [Drop(2), Drop(3)]),
        ([Merge(2, 3)], [Merge(2, 3)]),
        ([KvOnly(2)], [Merge(3, 2)]),
        ([], [Merge(3, 2)]),
        ([Shrink(2, "mlp", (0,)), Shrink(3, "mlp", (1,))], [Merge(3, 2)]),
        ([Shrink(2, "mlp", (0,))], []),
        ([Shrink(2, "mlp", (0,))], [Shrink(2, "mlp", (5,))]),
        ([Shrink(2, "attention", (1,))], [Shrink(2, "attention", (0, 1))]),
        ([Shrink(2, "attention", (1,))], [Drop(2)]),
        ([DropPart(2, "mlp")], []),
        ([DropPart(2, "mlp")], [Merge(3, 2)]),
        ([DropPart(2, "mlp")], [DropPart(2, "attention")]),
        ([DropPart(2, "attention")], [DropPart(2, "attention")]),
        ([DropPart(2, "attention")], [Drop(2)]),
        ([DropPart(2, "attention"), DropPart(2, "mlp")], [DropPart(2, "attention")]),
        ([Drop(2)], [DropPart(2, "attention")]),
        ([Drop(2)], [DropPart(2, "attention"), DropPart(2, "mlp")]),
        ([KvOnly(2)], [DropPart(2, "mlp")]),
        ([Shrink(2, "attention", (1,))], [DropPart(2, "attention")]),
        ([Merge(2, 3)], [DropPart(2, "attention"), DropPart(2, "mlp"), Drop(3)]),
        ([], [Shrink(2, "experts", (0,))]),
        ([Shrink(2, "experts", (0,))], []),
        ([Shrink(2, "experts", (0,))], [Shrink(2, "experts", (1, 2))]),
        ([Shrink(2, "experts", (0,))], [Drop(2)]),
        ([Shrink(2, "experts", (0,))], [Merge(2, 3)]),
        ([KvOnly(2)], [Shrink(2, "experts", (0,))]),
    ],
    ids=str,
)
def test_prefill_may_keep_more_than_decode_reads(prefill: list[Element], decode: list[Element]) -> None:
    assert plan(prefill, decode).removal("prefill") == Removal(prefill)


def test_all_breaches_are_told_at_once() -> None:
    with pytest.raises(PlanError) as caught:
        plan([Drop(1), KvOnly(2)], [Drop(2), KvOnly(3)])
    assert str(caught.value) == LAW + (
        "decode has kv:3, but K/V-only is a state of prefill; "
        "decode runs block 1, but prefill removes it and computes no K/V for it; "
        "prefill keeps the K/V of block 2, but decode does not run it: use a drop"
    )


@given(st.data(), BLOCKS)
def test_prefill_that_loses_a_subset_of_decode_is_always_lawful(data: st.DataObject, block_count: int) -> None:
    decode = data.draw(decodes(block_count))
    prefill = data.draw(st.lists(st.sampled_from(decode), unique=True)) if decode else []
    plan(prefill, decode)


@given(lawful())
def test_every_slot_of_decode_has_exactly_one_source(drawn: tuple[Plan, int]) -> None:
    a_plan, block_count = drawn
    feeds = a_plan.kv_map(block_count)
    assert [feed.slot for feed in feeds] == list(range(len(feeds)))
    assert [feed.block for feed in feeds] == [slot.block for slot in a_plan.slots(block_count)]


@given(lawful(), st.integers())
def test_the_order_of_elements_changes_neither_equality_nor_hash(drawn: tuple[Plan, int], seed: int) -> None:
    a_plan, _ = drawn
    turned = []
    for removal in (a_plan.prefill, a_plan.decode):
        elements = list(removal)
        Random(seed).shuffle(elements)
        turned.append(Removal(elements))
    assert Plan(*turned) == a_plan
    assert hash(Plan(*turned)) == hash(a_plan)


# Slots and sources


def test_slots_are_what_decode_runs() -> None:
    shrink = Shrink(4, "attention", (1,)), Shrink(4, "mlp", (0, 3))
    merge = Merge(2, 1)
    slots = plan([], [Drop(0), merge, *shrink]).slots(6)
    assert slots == (Slot(1, merge=merge), Slot(3), Slot(4, shrinks=shrink), Slot(5))
    assert [slot.blocks for slot in slots] == [(1, 2), (3,), (4,), (5,)]


@pytest.mark.parametrize(
    ("prefill", "decode", "feed"),
    [
        ([], [], KvSource(0, 0, "run")),
        ([KvOnly(0)], [], KvSource(0, 0, "kv-only")),
        ([], [Merge(1, 0)], KvSource(0, 0, "shadow")),
        ([Merge(1, 0)], [Merge(1, 0)], KvSource(0, 0, "merged")),
        ([KvOnly(0)], [Merge(1, 0)], KvSource(0, 0, "kv-only")),
        ([], [Merge(0, 1, "frozen")], KvSource(0, 0, "run")),
        ([Merge(0, 1, "frozen")], [Merge(0, 1, "frozen")], KvSource(0, 0, "merged")),
        ([KvOnly(0)], [Merge(0, 1, "frozen")], KvSource(0, 0, "kv-only")),
        ([], [Shrink(0, "attention", (0, 2))], KvSource(0, 0, "run", (0, 2))),
        ([Shrink(0, "attention", (2,))], [Shrink(0, "attention", (0, 2))], KvSource(0, 0, "run", (0,))),
        ([Shrink(0, "attention", (0, 2))], [Shrink(0, "attention", (0, 2))], KvSource(0, 0, "run")),
        ([KvOnly(0)], [Shrink(0, "attention", (0, 2))], KvSource(0, 0, "kv-only")),
        ([Shrink(0, "mlp", (7,))], [Shrink(0, "mlp", (7,))], KvSource(0, 0, "run")),
    ],
    ids=str,
)
def test_each_slot_knows_where_its_kv_come_from(prefill: list[Element], decode: list[Element], feed: KvSource) -> None:
    assert plan(prefill, decode).kv_map(3)[0] == feed


def test_channels_that_prefill_loses_are_no_kv_heads() -> None:
    # Prefill has all K/V heads here, so decode must take its slice, whatever became of prefill's MLP.
    a_plan = plan([Shrink(0, "mlp", (0, 2))], [Shrink(0, "attention", (0, 2)), Shrink(0, "mlp", (0, 2))])
    assert a_plan.kv_map(1) == (KvSource(0, 0, "run", (0, 2)),)


def test_slots_are_numbered_without_gaps() -> None:
    a_plan = plan([Drop(0), KvOnly(4)], [Drop(0), Merge(2, 1)])
    assert a_plan.kv_map(6) == (
        KvSource(0, 1, "shadow"),
        KvSource(1, 3, "run"),
        KvSource(2, 4, "kv-only"),
        KvSource(3, 5, "run"),
    )


def test_the_first_changed_block_is_the_lower_of_both_stages() -> None:
    assert Plan().first_block is None
    assert plan([], [Merge(5, 4)]).first_block == 4
    assert plan([KvOnly(2)], [Drop(5)]).first_block == 2


# The truncated prefill


@given(lawful())
def test_freeing_the_tail_twice_changes_nothing(drawn: tuple[Plan, int]) -> None:
    once = drawn[0].truncated_prefill(drawn[1])
    assert once.truncated_prefill(drawn[1]) == once


@given(lawful())
def test_freeing_the_tail_leaves_decode_and_all_before_the_last_slot(drawn: tuple[Plan, int]) -> None:
    before, block_count = drawn
    after = before.truncated_prefill(block_count)
    last = before.slots(block_count)[-1].block
    assert after.decode == before.decode
    assert [e for e in after.prefill if e.blocks[0] < last] == [e for e in before.prefill if e.blocks[0] < last]


@given(lawful())
def test_prefill_computes_nothing_behind_the_kv_of_the_last_slot(drawn: tuple[Plan, int]) -> None:
    before, block_count = drawn
    last = before.slots(block_count)[-1]
    prefill = before.truncated_prefill(block_count).prefill
    assert prefill.at(last.block) == (KvOnly(last.block),)
    assert all(prefill.at(block) == (Drop(block),) for block in range(last.blocks[-1] + 1, block_count))


@given(lawful())
def test_every_slot_still_finds_its_kv_when_the_tail_is_freed(drawn: tuple[Plan, int]) -> None:
    before, block_count = drawn
    feeds, freed = before.kv_map(block_count), before.truncated_prefill(block_count).kv_map(block_count)
    assert feeds[:-1] == freed[:-1]
    assert (freed[-1].block, freed[-1].source) == (feeds[-1].block, "kv-only")


def test_a_plan_without_slots_has_no_tail_to_free() -> None:
    nothing = Plan.unified(Removal([Drop(0), Drop(1)]))
    assert nothing.truncated_prefill(2) is nothing


# Fitting


def test_a_plan_for_more_blocks_is_refused() -> None:
    with pytest.raises(PlanError) as caught:
        plan([], [Merge(4, 3)]).check_fits(4)
    assert str(caught.value) == "this plan changes block 4, but the model has blocks 0 to 3"


def test_decode_keeps_at_least_one_block() -> None:
    with pytest.raises(PlanError) as caught:
        plan([], [Drop(0), Drop(1)]).check_fits(2)
    assert str(caught.value) == "this plan leaves decode none of the 2 blocks"


@given(lawful())
def test_a_plan_fits_the_model_it_was_drawn_for(drawn: tuple[Plan, int]) -> None:
    drawn[0].check_fits(drawn[1])
    drawn[0].truncated_prefill(drawn[1]).check_fits(drawn[1])


def test_a_plan_is_shown_by_stage() -> None:
    assert str(plan([], [Drop(3), Merge(5, 6)])) == "prefill {}, decode {3, 5+6}"


# JSON


# Parts


def test_kv_are_shipped_for_the_blocks_whose_attention_decode_runs() -> None:
    a_plan = plan([], [DropPart(0, "attention"), DropPart(2, "mlp"), Drop(3)])
    assert [slot.block for slot in a_plan.slots(5)] == [1, 2, 4]
    assert a_plan.kv_map(5) == (KvSource(0, 1, "run"), KvSource(1, 2, "run"), KvSource(2, 4, "run"))


def test_prefill_ends_with_the_last_block_whose_kv_decode_reads() -> None:
    a_plan = plan([], [DropPart(3, "attention"), DropPart(4, "attention")]).truncated_prefill(5)
    assert a_plan.prefill == Removal([KvOnly(2), Drop(3), Drop(4)])
    assert a_plan.truncated_prefill(5) == a_plan
    assert a_plan.states("decode", 5) == ("run", "run", "run", "no-attention", "no-attention")


def test_decode_needs_attention_in_a_block() -> None:
    with pytest.raises(PlanError) as caught:
        plan([], [Drop(0), DropPart(1, "attention")]).check_fits(2)
    assert str(caught.value) == "this plan leaves decode no attention, so that it could not read the prompt: keep that of a block"
    with pytest.raises(PlanError) as caught:
        plan([], [Drop(0), DropPart(1, "attention"), DropPart(1, "mlp")]).check_fits(2)
    assert str(caught.value) == "this plan leaves decode none of the 2 blocks"
