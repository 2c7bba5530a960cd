"""Elements and removals: what one stage loses."""

from __future__ import annotations

from itertools import permutations
from typing import Any

import pytest

from pdtrim_core.errors import PlanError
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Removal, Shrink, element_from_json, element_to_json

ONE_OF_EACH: tuple[Element, ...] = (
    Drop(0),
    Merge(2, 1),
    Merge(3, 4, kv="frozen"),
    Shrink(5, "attention", (0, 2)),
    Shrink(5, "mlp", (7,)),
    Shrink(9, "experts", (0, 3)),
    KvOnly(6),
    DropPart(7, "attention"),
    DropPart(8, "mlp"),
)


@pytest.mark.parametrize("element", ONE_OF_EACH, ids=str)
def test_an_element_survives_json(element: Element) -> None:
    assert element_from_json(element_to_json(element)) == element


@pytest.mark.parametrize("element", ONE_OF_EACH, ids=str)
def test_an_element_changes_places_in_its_own_blocks_only(element: Element) -> None:
    assert {block for block, _ in element.places} == set(element.blocks)


def test_elements_of_a_part_change_it_alone_and_all_others_change_both() -> None:
    assert [len(element.places) // len(element.blocks) for element in ONE_OF_EACH] == [2, 2, 2, 1, 1, 1, 2, 1, 1]


def test_a_block_goes_where_both_of_its_parts_do() -> None:
    one, both = (Removal([DropPart(3, "mlp"), *more, Drop(5)]) for more in ((), (DropPart(3, "attention"),)))
    assert (one.blocks_removed, both.blocks_removed) == (1, 2)
    assert [sorted(both.lost_at(block)) for block in (3, 4, 5)] == [["attention", "mlp"], [], ["attention", "mlp"]]
    assert sorted(one.lost_at(3)) == ["mlp"]


def test_a_part_that_is_gone_has_no_units_to_lose() -> None:
    assert len(Removal([DropPart(3, "mlp"), Shrink(3, "attention", (0,))])) == 2
    with pytest.raises(PlanError) as caught:
        Removal([DropPart(3, "mlp"), Shrink(3, "mlp", (0,))])
    assert str(caught.value) == "block 3 is changed twice in one removal: 3.mlp and 3.mlp-1"


def test_experts_are_the_mlp_of_their_block() -> None:
    assert Removal([Shrink(3, "experts", (0,)), Shrink(3, "attention", (0,))]).shrinks_experts
    assert not Removal([Shrink(3, "mlp", (0,))]).shrinks_experts
    for other in (DropPart(3, "mlp"), Shrink(3, "mlp", (0,)), Drop(3)):
        with pytest.raises(PlanError) as caught:
            Removal([other, Shrink(3, "experts", (0,))])
        assert "block 3 is changed twice in one removal" in str(caught.value)


def test_a_merge_has_its_blocks_in_order_whichever_is_trained() -> None:
    assert Merge(4, 3).blocks == Merge(3, 4).blocks == (3, 4)
    assert Merge(4, 3) != Merge(3, 4)


def test_elements_have_short_names() -> None:
    assert [str(element) for element in ONE_OF_EACH] == [
        "0",
        "1+2",
        "3+4",
        "5.attention-2",
        "5.mlp-1",
        "9.experts-2",
        "kv:6",
        "7.attention",
        "8.mlp",
    ]
    assert str(Removal(ONE_OF_EACH)) == "{0, 1+2, 3+4, 5.attention-2, 5.mlp-1, kv:6, 7.attention, 8.mlp, 9.experts-2}"


def test_a_merge_takes_two_blocks_or_more() -> None:
    assert Merge(5, 2).blocks == (2, 3, 4, 5)
    assert str(Merge(5, 2)) == "2+3+4+5"
    assert Removal([Merge(5, 2), Drop(0), Shrink(1, "mlp", (0,))]).blocks_removed == 4
    with pytest.raises(PlanError) as caught:
        Merge(2, 2)
    assert str(caught.value) == "a merge takes two neighbouring blocks or more, got only block 2"


def test_a_frozen_merge_starts_from_its_first_block() -> None:
    with pytest.raises(PlanError) as caught:
        Merge(keep=4, drop=3, kv="frozen")
    assert str(caught.value) == (
        "a merge of 3 and 4 with frozen K/V must start from block 3, the first of the run: prefill has no K/V of the others on "
        "the run's input"
    )


@pytest.mark.parametrize("units", [(), (1, 1), (2, 1), (-1, 0)])
def test_removed_units_are_distinct_rising_and_not_negative(units: tuple[int, ...]) -> None:
    with pytest.raises(PlanError) as caught:
        Shrink(3, "mlp", units)
    assert str(caught.value) == "the removed units of block 3 must be distinct, rising and not negative"


@pytest.mark.parametrize(
    ("elements", "message"),
    [
        ((Drop(3), Drop(3)), "block 3 is changed twice in one removal: 3 and 3"),
        ((Merge(3, 4), Drop(4)), "block 4 is changed twice in one removal: 3+4 and 4"),
        ((Merge(3, 4), Merge(4, 5)), "block 4 is changed twice in one removal: 3+4 and 4+5"),
        ((KvOnly(2), Drop(2)), "block 2 is changed twice in one removal: 2 and kv:2"),
        ((Shrink(1, "mlp", (0,)), Shrink(1, "mlp", (1,))), "block 1 is changed twice in one removal: 1.mlp-1 and 1.mlp-1"),
        ((Shrink(1, "mlp", (0,)), Drop(1)), "block 1 is changed twice in one removal: 1 and 1.mlp-1"),
    ],
)
def test_a_place_is_changed_once(elements: tuple[Element, ...], message: str) -> None:
    for order in permutations(elements):
        with pytest.raises(PlanError) as caught:
            Removal(order)
        assert str(caught.value) == message


def test_a_number_is_no_element() -> None:
    with pytest.raises(PlanError) as caught:
        Removal([3])  # type: ignore[list-item]
    assert str(caught.value) == "3 is no element of a removal: Drop(3) removes block 3"


@pytest.mark.parametrize("element", [Drop(-1), Merge(0, -1), KvOnly(-1)])
def test_blocks_count_from_0(element: Element) -> None:
    with pytest.raises(PlanError) as caught:
        Removal([element])
    assert str(caught.value) == "blocks count from 0, got -1"


def test_both_parts_of_a_block_may_shrink() -> None:
    removal = Removal([Shrink(1, "mlp", (0,)), Shrink(1, "attention", (0,))])
    assert len(removal.at(1)) == 2


def test_the_order_in_which_elements_are_given_does_not_matter() -> None:
    wanted = Removal(ONE_OF_EACH)
    turned = [ONE_OF_EACH[start:] + ONE_OF_EACH[:start] for start in range(len(ONE_OF_EACH))]
    for order in (*turned, *(other[::-1] for other in turned)):
        assert Removal(order).elements == wanted.elements
        assert hash(Removal(order)) == hash(wanted)


def test_a_removal_is_a_set_of_elements() -> None:
    removal = Removal([Drop(3), Merge(5, 4)])
    assert list(removal) == [Drop(3), Merge(5, 4)]
    assert len(removal) == 2
    assert Drop(3) in removal
    assert Merge(4, 5) not in removal
    assert removal.at(5) == (Merge(5, 4),)
    assert removal.at(0) == ()


def test_elements_go_in_and_out_of_a_removal() -> None:
    removal = Removal([Drop(3)])
    assert removal.with_(Drop(1)) == Removal([Drop(1), Drop(3)])
    assert removal.with_(Drop(1)).without(Drop(1)) == removal
    assert removal.without(Drop(7)) == removal


def test_a_shrunk_block_still_runs() -> None:
    assert Removal(ONE_OF_EACH).blocks_removed == 4
    assert Removal([Shrink(0, "mlp", (1,))]).blocks_removed == 0


@pytest.mark.parametrize(
    "garbage",
    [
        None,
        5,
        "drop",
        [],
        {},
        {"kind": "drop"},
        {"kind": "melt", "block": 1},
        {"kind": ["drop"], "block": 1},
        {"kind": "drop", "block": 1, "why": "?"},
        {"kind": "merge", "keep": 1},
        {"kind": "merge", "keep": "1", "drop": "2"},
        {"kind": "shrink", "block": 1, "part": "mlp", "units": 3},
    ],
    ids=str,
)
def test_what_is_no_element_is_refused_and_shown(garbage: Any) -> None:
    with pytest.raises(PlanError) as caught:
        element_from_json(garbage)
    assert str(caught.value) == f"not an element of a plan: {garbage!r}"


@pytest.mark.parametrize(
    "garbage",
    [
        {"kind": "drop", "block": "1"},
        {"kind": "drop", "block": 1.5},
        {"kind": "drop", "block": None},
        {"kind": "drop", "block": [1]},
        {"kind": "kv-only", "slot": "x"},
        {"kind": "merge", "keep": 1.5, "drop": 2.5},
        {"kind": "merge", "keep": 1, "drop": 2, "kv": "melted"},
        {"kind": "shrink", "block": 1, "part": "nose", "units": [0]},
        {"kind": "shrink", "block": 1, "part": "mlp", "units": [0.5]},
    ],
    ids=str,
)
def test_fields_of_the_wrong_sort_are_refused(garbage: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        element_from_json(garbage)


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (
            {"kind": "merge", "keep": 0, "drop": 10**12, "kv": "shadow"},
            "a merge of blocks 0 to 1000000000000: models have 1,000",
        ),
        ({"kind": "drop", "block": 30_000_000}, "no model has a block 30000000: there are 1,000 at most"),
        ({"kind": "kv-only", "slot": 10**15}, "no model has a block 1000000000000000: there are 1,000 at most"),
        ({"kind": "shrink", "block": 0, "part": "mlp", "units": [10**9]}, "no block has a unit 1000000000: models have at most"),
    ],
)
def test_blocks_and_units_that_no_model_has_are_refused_before_they_are_listed(data: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        Removal([element_from_json(data)])
