"""Rows: who shares one, who sees what, and what prefill reads."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pdtrim_core import Drop, KvOnly, Plan, Removal
from pdtrim_core.data.items import Item
from pdtrim_core.execution.batching import RowLayout, fill
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.testing import tiny_model

pytestmark = pytest.mark.numeric

CPU = torch.device("cpu")
LENGTHS = st.lists(st.integers(min_value=1, max_value=90), min_size=1, max_size=40)


def item(prompt: int, *choices: int) -> Item:
    """Return an item with a prompt and choices of so many tokens, no two of them alike."""
    return Item(
        (tuple(range(3, 3 + prompt)),),
        tuple(tuple(range(20 + 9 * number, 20 + 9 * number + size)) for number, size in enumerate(choices)),
        0,
        (1,) * len(choices),
        f"{prompt} {choices}",
    )


@given(LENGTHS, st.integers(min_value=1, max_value=128))
def test_segments_in_rows_do_not_overlap_and_keep_the_limit(lengths: list[int], row_tokens: int) -> None:
    places = fill(lengths, row_tokens)
    assert {place.row for place in places} == set(range(max(place.row for place in places) + 1))
    taken = sorted((*place, place.column + length) for place, length in zip(places, lengths, strict=True))
    for (row, _, end), (next_row, start, _) in pairwise(taken):
        assert start == (end if row == next_row else 0), "segments of a row stand side by side from its beginning on"
    assert max(end for _, _, end in taken) <= max(row_tokens, *lengths)


@given(st.lists(st.integers(min_value=1, max_value=32), min_size=20, max_size=60))
def test_rows_of_many_short_segments_are_nearly_full(lengths: list[int]) -> None:
    places = fill(lengths, 128)
    width = max(place.column + length for place, length in zip(places, lengths, strict=True))
    rows = 1 + max(place.row for place in places)
    assert rows * width <= 1.1 * sum(lengths) + 32


def test_items_in_a_row_do_not_see_each_other() -> None:
    batch = RowLayout(row_tokens=64).batch([item(3, 2, 2), item(2, 3)], CPU)
    rows = batch.rows
    assert rows.ids_BT.tolist() == [[3, 4, 5, 20, 29, 3, 4, 20, 21]]
    assert rows.positions_BT is not None
    assert rows.positions_BT.tolist() == [[0, 1, 2, 3, 3, 0, 1, 2, 3]]
    assert rows.mask_BTT is not None
    seen = [[column for column, sees in enumerate(line) if sees] for line in rows.mask_BTT[0, 0].tolist()]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [5], [5, 6], [5, 6, 7], [5, 6, 7, 8]]


@pytest.mark.parametrize(("first_token", "read"), [("decode", [0, 1, 5]), ("prefill", [0, 1, 2, 5, 6])])
def test_prefill_reads_the_prompts_alone(first_token: FirstToken, read: list[int]) -> None:
    prompts = RowLayout(first_token, row_tokens=64).batch([item(3, 2, 2), item(2, 3)], CPU).prompts
    assert prompts is not None
    assert sorted(prompts.source_PQ.flatten()[prompts.real_N].tolist()) == read


def test_prompts_of_one_token_leave_prefill_nothing_to_read() -> None:
    assert RowLayout("decode").batch([item(1, 2)], CPU).prompts is None


def test_an_item_longer_than_the_sliding_window_keeps_the_models_own_mask() -> None:
    model = tiny_model("mistral", sliding_window=16)
    short, long = item(5, 3, 4), item(20, 3, 4)
    staged = [
        StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=512, packed=packed)), Plan()) for packed in (True, False)
    ]
    together, apart = (one.loglikelihoods([short, long]) for one in staged)
    for one, other in zip(together, apart, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_sharing_rows_with_other_items_changes_a_staged_plan_by_rounding_alone(first_token: FirstToken) -> None:
    model = tiny_model("llama")
    items = [item(prompt, *choices) for prompt in (1, 2, 5, 11, 17) for choices in ((1, 1), (4,), (2, 6, 3))]
    plan = Plan(Removal([Drop(1), KvOnly(4)]), Removal([Drop(1), Drop(2)]))
    prefix_caches = [
        PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=tokens, packed=True)) for tokens in (1, 4096)
    ]
    alone, together = (StagedModel(prefix_cache, plan).loglikelihoods(items) for prefix_cache in prefix_caches)
    for one, other in zip(alone, together, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
