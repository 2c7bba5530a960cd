"""What a selector of K/V is given."""

from __future__ import annotations

import torch

from pdtrim_core.api import Drop, Edges, FirstOnly, Merge, Plan, Removal, Selection, SelectionFacts
from pdtrim_core.testing import selection_context, tiny_llama
from tests.unit.execution.test_staged_model import MERGE, replacements

TEXTS = [[number % 256 for number in range(count)] for count in (200, 2, 120)]


def test_blocks_are_where_decode_has_layers_of_a_merged_block_the_first() -> None:
    model = tiny_llama()
    plan = Plan(decode=Removal([Drop(1), MERGE]))
    assert Merge(keep=3, drop=2) == MERGE
    assert selection_context(model, plan, TEXTS, modules=replacements(model)).blocks == (0, 2, 4, 5)


def test_prompts_are_as_long_as_what_prefill_hands_over_and_those_of_nothing_are_left_out() -> None:
    context = selection_context(tiny_llama(), Plan(), TEXTS)
    assert context.prompt_tokens == (99, 59)
    assert context.facts == SelectionFacts("tiny llama", "texts", (99, 59))
    made_by_prefill = selection_context(tiny_llama(), Plan(), TEXTS, first_token="prefill")
    assert made_by_prefill.prompt_tokens == (100, 60)


def test_masses_of_some_texts_are_those_of_all_at_their_numbers() -> None:
    context = selection_context(tiny_llama(), Plan(), TEXTS)
    asked: list[Selection] = [Edges(2, 0.2, 0.2), FirstOnly(4)]
    of_all, of_second = context.masses(asked), context.masses(asked, texts=[1])
    for whole, part in zip(of_all, of_second, strict=True):
        assert whole.shape == (2, 4)
        assert torch.equal(whole[1:], part)
    assert [mass.numel() for mass in context.masses(asked, texts=[])] == [0, 0]


def test_the_pair_is_seen_as_it_is_before_it_reads_less() -> None:
    plan, asked = Plan(), [Edges(3, 0.1, 0.1)]
    (before,), (after,) = (
        selection_context(tiny_llama(), of, TEXTS).masses(asked) for of in (plan, plan.selecting([FirstOnly(0), FirstOnly(3)]))
    )
    assert torch.equal(before, after)
