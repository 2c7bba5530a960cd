"""The layers of a stage: what each of them is, and which of decode's its K/V feed; what costs count is what they hold."""

from __future__ import annotations

import pytest

from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Shrink, Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import Plan
from tests.unit.examples import given
from tests.unit.plan.plans import lawful, plan

HEADS, CHANNELS = Shrink(1, "attention", (0, 2)), Shrink(1, "mlp", (3,))
NO_ATTENTION, NO_MLP = DropPart(1, "attention"), DropPart(1, "mlp")
MERGE, FROZEN, THREE = Merge(2, 1), Merge(1, 2, "frozen"), Merge(3, 1)


@pytest.mark.parametrize(
    ("prefill", "decode", "stage", "layers"),
    [
        ([], [], "decode", [Layer((1,), "run", 1)]),
        ([], [], "prefill", [Layer((1,), "run", 1, kv_slot=1)]),
        ([], [Drop(1)], "decode", []),
        ([], [Drop(1)], "prefill", [Layer((1,), "run", 1)]),
        ([], [HEADS, CHANNELS], "decode", [Layer((1,), "shrunk", 1, shrinks=(HEADS, CHANNELS))]),
        ([CHANNELS], [HEADS], "prefill", [Layer((1,), "shrunk", 1, None, (CHANNELS,), 1, (0, 2))]),
        ([KvOnly(1)], [HEADS, CHANNELS], "prefill", [Layer((1,), "kv-only", 1, None, (HEADS,), 1)]),
        ([], [MERGE], "decode", [Layer((1, 2), "merged", 2, MERGE)]),
        (
            [],
            [MERGE],
            "prefill",
            [Layer((1, 2), "shadow", 2, MERGE, kv_slot=1), Layer((1,), "run", 1), Layer((2,), "run", 2)],
        ),
        ([MERGE], [MERGE], "prefill", [Layer((1, 2), "merged", 2, MERGE, kv_slot=1)]),
        ([MERGE], [Drop(1), Drop(2)], "prefill", [Layer((1, 2), "merged", 2, MERGE)]),
        ([KvOnly(1)], [MERGE], "prefill", [Layer((1, 2), "kv-only", 2, MERGE, kv_slot=1)]),
        ([], [FROZEN], "prefill", [Layer((1,), "run", 1, kv_slot=1), Layer((2,), "run", 2)]),
        ([KvOnly(1)], [THREE], "prefill", [Layer((1, 2, 3), "kv-only", 3, THREE, kv_slot=1)]),
        ([], [NO_MLP], "decode", [Layer((1,), "no-mlp", 1, lost="mlp")]),
        ([NO_MLP], [], "prefill", [Layer((1,), "no-mlp", 1, kv_slot=1, lost="mlp")]),
        ([KvOnly(1)], [NO_MLP, HEADS], "prefill", [Layer((1,), "kv-only", 1, None, (HEADS,), 1)]),
        ([], [NO_ATTENTION], "decode", [Layer((1,), "no-attention", 1, lost="attention")]),
        ([], [NO_ATTENTION], "prefill", [Layer((1,), "run", 1)]),
        ([NO_ATTENTION], [NO_ATTENTION], "prefill", [Layer((1,), "no-attention", 1, lost="attention")]),
        ([], [NO_ATTENTION, CHANNELS], "decode", [Layer((1,), "no-attention", 1, shrinks=(CHANNELS,), lost="attention")]),
        ([], [NO_ATTENTION, NO_MLP], "decode", []),
        ([NO_ATTENTION], [NO_ATTENTION, Drop(0)], "decode", [Layer((1,), "no-attention", 1, lost="attention")]),
        ([], [DropPart(0, "attention")], "prefill", [Layer((0,), "run", 0)]),
    ],
    ids=str,
)
def test_every_element_has_its_layers(prefill: list[Element], decode: list[Element], stage: Stage, layers: list[Layer]) -> None:
    touched = {block for element in (*prefill, *decode) for block in element.blocks} or {1}
    found = plan(prefill, decode).layers(stage, 5)
    assert [layer for layer in found if not touched.isdisjoint(layer.blocks)] == layers


@given(lawful())
def test_each_layer_of_decode_is_fed_by_one_of_prefill_at_the_same_place(drawn: tuple[Plan, int]) -> None:
    for a_plan in (drawn[0], drawn[0].truncated_prefill(drawn[1])):
        decode = [layer for layer in a_plan.layers("decode", drawn[1]) if layer.has_kv]
        feeding = [layer for layer in a_plan.layers("prefill", drawn[1]) if layer.kv_slot is not None]
        assert [layer.kv_slot for layer in feeding] == list(range(len(decode)))
        assert [layer.block for layer in feeding] == [layer.block for layer in decode]
        for layer, fed in zip(feeding, decode, strict=True):
            assert sorted((*layer.removed_kv_heads, *layer.sliced_heads)) == sorted(fed.removed_kv_heads)


@given(lawful())
def test_layers_that_run_stand_for_no_block_twice(drawn: tuple[Plan, int]) -> None:
    a_plan, block_count = drawn
    for stage in ("prefill", "decode"):
        blocks = [block for layer in a_plan.layers(stage, block_count) if layer.state != "shadow" for block in layer.blocks]
        assert blocks == sorted(set(blocks))
        states = {block: a_plan.state(stage, block) for block in range(block_count)}
        assert {block for block, state in states.items() if state != "gone"} == set(blocks)


@given(lawful())
def test_layers_do_not_depend_on_the_blocks_behind_them(drawn: tuple[Plan, int]) -> None:
    a_plan, block_count = drawn
    for stage in ("prefill", "decode"):
        longer = a_plan.layers(stage, block_count + 3)
        assert longer[:-3] == a_plan.layers(stage, block_count)
        assert all(layer.state == "run" for layer in longer[-3:])


@given(lawful())
def test_costs_count_what_the_layers_hold(drawn: tuple[Plan, int]) -> None:
    a_plan, block_count = drawn
    # Each block has its own sizes; 4 K/V heads, of which each holds 10 of K and V and 30 in all, and 8 channels of 5. The parts
    # have more than their units.
    blocks = tuple(
        BlockSizes(
            *(10**6 + index, 10**6, 40, 8, 16),
            {"attention": (4, 30), "mlp": (8, 5), "experts": (8, 4)},
            kv_norms=3,
            parts={"attention": (200, 150), "mlp": (100, 70)},
        )
        for index in range(block_count)
    )
    sizes = ModelSizes(blocks, sum(block.parameters for block in blocks) + 7, 5, 4)
    for stage in ("prefill", "decode"):
        expected = 7
        for layer in a_plan.layers(stage, block_count):
            lost = {shrink.part: len(shrink.units) for shrink in layer.shrinks}
            if layer.runs:
                expected -= {"attention": 200, "mlp": 100, None: 0}[layer.lost]
                expected += 10**6 + layer.like - 30 * lost.get("attention", 0) - 5 * lost.get("mlp", 0)
                expected -= 4 * lost.get("experts", 0)
            else:
                expected += 40 - 10 * lost.get("attention", 0) + 3
        assert sizes.kept_parameters(a_plan, stage) == expected
