"""Texts that a model writes: from its own distribution, the same ones for a seed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from pdtrim_core.api import PdtrimError
from pdtrim_core.execution.distributions import DRAWN_AT_ONCE, drawn
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.testing import tiny_llama

OPENINGS = [(1, 2, 3)] * 400


def test_texts_begin_as_they_are_told_to_and_have_the_length_that_is_wanted() -> None:
    texts = sampled(tiny_llama(), [(1, 2), (3, 4)], 9, seed=0)
    assert [text[:2] for text in texts] == [(1, 2), (3, 4)]
    assert {len(text) for text in texts} == {9}


def test_openings_of_any_length_are_read_whole_and_gone_on_from() -> None:
    model, openings = tiny_llama(), [(1, 2), (3, 4, 5, 6, 7), (8,)]
    texts = sampled(model, openings, 9, seed=0)
    assert [text[: len(opening)] for text, opening in zip(texts, openings, strict=True)] == openings
    assert {len(text) for text in texts} == {9}
    # The longest is read while the others are written already: its distribution is that behind all of it.
    long = [openings[1]] * 300 + [(8,)]
    with torch.no_grad():
        chances = model.model(torch.tensor([openings[1]])).logits[0, -1].double().index_fill(0, torch.tensor([257]), -torch.inf)
    likeliest = int(chances.argmax())
    drawn = sum(text[5] == likeliest for text in sampled(model, long, 6, seed=0)[:-1]) / 300
    expected = float(chances.softmax(-1)[likeliest])
    assert abs(drawn - expected) < 4 * (expected * (1 - expected) / 300) ** 0.5


def test_the_same_seed_gives_the_same_texts_and_another_gives_others() -> None:
    model = tiny_llama()
    assert sampled(model, OPENINGS[:4], 12, seed=1) == sampled(model, OPENINGS[:4], 12, seed=1)
    assert sampled(model, OPENINGS[:4], 12, seed=1) != sampled(model, OPENINGS[:4], 12, seed=2)


def test_tokens_are_drawn_as_often_as_the_model_expects_and_none_ends_the_text() -> None:
    model = tiny_llama()
    with torch.no_grad():
        logits = model.model(torch.tensor([OPENINGS[0]])).logits[0, -1].double()
    logits[257] = -torch.inf
    chances = logits.softmax(-1)
    drawn = Counter(text[-1] for text in sampled(model, OPENINGS, 4, seed=0))
    assert drawn[257] == 0
    likeliest = int(chances.argmax())
    expected = float(chances[likeliest])
    assert abs(drawn[likeliest] / len(OPENINGS) - expected) < 4 * (expected * (1 - expected) / len(OPENINGS)) ** 0.5


def test_an_opening_that_the_model_cannot_read_is_refused() -> None:
    with pytest.raises(
        PdtrimError, match="the opening of a text that is to be written has the token 5000, and the vocabulary of"
    ):
        sampled(tiny_llama(), [(1, 2), (3, 5000)], 9, seed=0)


def test_what_the_head_has_and_the_embedding_has_not_is_never_written() -> None:
    model = tiny_llama()
    embedding = model.model.get_input_embeddings()
    rows = len(embedding.weight) - 100
    embedding.padding_idx = None
    embedding.weight = torch.nn.Parameter(embedding.weight[:rows].detach())
    model.model.generation_config.eos_token_id = [rows + 50]
    assert max(max(text) for text in sampled(model, OPENINGS, 6, seed=0)) < rows


def test_a_token_that_ends_texts_and_is_in_no_vocabulary_ends_none() -> None:
    model = tiny_llama()
    model.model.generation_config.eos_token_id = [257, 5000]
    assert {len(text) for text in sampled(model, OPENINGS[:4], 9, seed=0)} == {9}


def test_tokens_are_drawn_as_often_as_their_distribution_says_and_such_as_cannot_be_never() -> None:
    chances = torch.tensor([0.0, 0.5, 0.0, 0.2, 0.3, 0.0])
    count = 40 * DRAWN_AT_ONCE + 1
    found = Counter(drawn(chances.log().expand(count, -1), torch.Generator().manual_seed(0))[:, 0].tolist())
    assert set(found) == {1, 3, 4}
    for token in found:
        chance = float(chances[token])
        assert abs(found[token] / count - chance) < 4 * (chance * (1 - chance) / count) ** 0.5


def test_each_position_is_drawn_from_its_own_distribution_whatever_its_logits_add_up_to() -> None:
    logits_NV = torch.full((3 * DRAWN_AT_ONCE, 7), -torch.inf)
    logits_NV[torch.arange(len(logits_NV)), torch.arange(len(logits_NV)) % 7] = torch.linspace(-50, 50, len(logits_NV))
    found_N1 = drawn(logits_NV, torch.Generator().manual_seed(3))
    assert found_N1[:, 0].tolist() == [number % 7 for number in range(len(logits_NV))]


def test_what_is_no_distribution_gives_a_token_all_the_same() -> None:
    assert drawn(torch.full((2, 5), torch.nan), torch.Generator()).tolist() == [[4], [4]]
