"""Items in groups that run as one batch each: all of them, once, within the limit, whatever their order."""

from __future__ import annotations

import random
from itertools import pairwise

from hypothesis import strategies as st

from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.execution.grouping import RowShape, group_by_length
from pdtrim_core.testing import ByteTokenizer
from tests.unit.examples import given

TOKENIZER = ByteTokenizer()


def shape(item: Item) -> RowShape:
    width = max(len(item.prompt_of(n)) + len(choice) for n, choice in enumerate(item.choices))
    return RowShape(len(item.choices), width, shared=len(item.choices) == 2)


ITEMS = st.lists(
    st.tuples(st.integers(min_value=1, max_value=9), st.lists(st.integers(min_value=1, max_value=5), min_size=1, max_size=3)),
    max_size=10,
).map(
    lambda drawn: [
        encode(Sample("p" * prompt, tuple("c" * size for size in sizes), name=str(number)), TOKENIZER)
        for number, (prompt, sizes) in enumerate(drawn)
    ]
)


@given(ITEMS, st.integers(min_value=1, max_value=60))
def test_every_item_is_in_one_group_and_batches_keep_their_limit(items: list[Item], limit: int) -> None:
    groups = group_by_length(items, limit, shape)
    assert sorted((item for group in groups for item in group), key=lambda item: item.name) == sorted(
        items, key=lambda item: item.name
    )
    for group in groups:
        assert group
        shapes = [shape(item) for item in group]
        assert len({its.shared for its in shapes}) == 1
        padded = sum(its.rows for its in shapes) * max(its.width for its in shapes)
        filled = sum(its.rows * its.width for its in shapes)
        assert len(group) == 1 or (filled if shapes[0].shared else padded) <= limit


@given(ITEMS, st.integers(min_value=1, max_value=60), st.randoms(use_true_random=False))
def test_the_order_of_items_does_not_change_the_groups(items: list[Item], limit: int, rng: random.Random) -> None:
    turned = list(items)
    rng.shuffle(turned)
    assert group_by_length(turned, limit, shape) == group_by_length(items, limit, shape)


@given(ITEMS)
def test_groups_go_from_short_to_long(items: list[Item]) -> None:
    order = [(shape(item).shared, shape(item).width) for group in group_by_length(items, 20, shape) for item in group]
    assert order == sorted(order)


@given(ITEMS.filter(bool))
def test_an_item_beyond_the_limit_has_a_group_of_its_own(items: list[Item]) -> None:
    assert sorted(len(group) for group in group_by_length(items, 0, shape)) == [1] * len(items)


@given(ITEMS)
def test_a_group_is_closed_only_when_the_next_item_does_not_go_with_it(items: list[Item]) -> None:
    groups = group_by_length(items, 40, shape)
    for group, behind in pairwise(groups):
        both = [*group, behind[0]]
        shared = {shape(item).shared for item in both}
        assert len(shared) == 2 or group_by_length(both, 40, shape) == [group, behind[:1]]


@given(ITEMS)
def test_a_group_s_own_grouping_is_itself(items: list[Item]) -> None:
    for group in group_by_length(items, 30, shape):
        assert group_by_length(group, 30, shape) == [group]
