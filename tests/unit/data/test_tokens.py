"""Text as tokens: special tokens in front stay, special tokens behind do not."""

from __future__ import annotations

import pytest

from pdtrim_core.data.items import Sample, encode
from pdtrim_core.data.tokens import in_front, opening_of, tokens_of
from tests.unit.tokenizers_of_five_kinds import KINDS, TEMPLATES, tokenizer_of

BEGIN, END = 256, 257


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_begins_as_the_tokenizer_begins_texts_and_does_not_end_as_it_ends_them(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    item = encode(Sample("The sky is", (" blue", " not")), tokenizer)
    assert (item.prompts[0][0] == BEGIN) is ("<bos>" in TEMPLATES[kind])
    assert END not in item.prompts[0]
    for number, text in enumerate((" blue", " not")):
        assert tokenizer.decode(item.tokens if number == 0 else [*item.prompts[0], *item.choices[1]]).endswith(f"is{text}")
        assert END not in item.choices[number]
        assert BEGIN not in item.choices[number]


@pytest.mark.parametrize("kind", KINDS)
def test_the_tokens_of_a_text_alone_have_no_special_ones(kind: str) -> None:
    assert set(tokens_of("a text", tokenizer_of(kind))).isdisjoint((BEGIN, END))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_that_begins_with_the_token_by_its_name_does_not_get_it_twice(kind: str) -> None:
    tokenizer = tokenizer_of(kind)
    assert opening_of("<bos>The sky", tokenizer) == ()
    item = encode(Sample("<bos>The sky", (" is",)), tokenizer)
    assert item.tokens.count(BEGIN) == 1


@pytest.mark.parametrize(
    ("whole", "bare", "expected"),
    [
        ([1, 5, 6, 2], [5, 6], (1,)),
        ([5, 6, 2], [5, 6], ()),
        ([1, 9, 5], [5], (1, 9)),
        ([2, 2], [2], ()),
        ([1, 2, 2], [2], (1,)),
        ([1, 2], [], ()),
        ([1, 2], [3], ()),
        ([], [3], ()),
    ],
)
def test_what_stands_in_front_is_found_by_the_text_behind_it(
    whole: list[int], bare: list[int], expected: tuple[int, ...]
) -> None:
    assert in_front(whole, bare) == expected


@pytest.mark.parametrize(
    ("whole", "bare", "usual", "expected"),
    [
        ([1], [], (1,), (1,)),
        ([1, 2], [], (1,), (1,)),
        ([2], [], (), ()),
        ([1, 1], [1], (1,), (1,)),
        ([1, 1, 1, 2], [1, 1], (1,), (1,)),
        ([1, 1], [1, 1], (1,), ()),
        ([1, 3], [3], (4, 4), (1,)),
    ],
)
def test_where_several_places_fit_what_usually_stands_in_front_decides(
    whole: list[int], bare: list[int], usual: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    assert in_front(whole, bare, usual) == expected
