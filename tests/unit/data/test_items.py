"""Calibration items: samples as text, items as tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import strategies as st

from pdtrim_core.data.items import Item, Sample, answers_digest, calibrate, digest_of, encode
from pdtrim_core.errors import PdtrimError
from pdtrim_core.testing import ByteTokenizer
from tests.unit.examples import given

TOKENIZER = ByteTokenizer()
TEXT = st.text("ab \n", min_size=1, max_size=6)


def tokens(text: str) -> tuple[int, ...]:
    return tuple(text.encode())


def sample(prompt: str = "The sky is", *choices: str, **fields: Any) -> Sample:
    return Sample(prompt, choices or (" blue", " green"), **fields)


class Opening:
    """A byte tokenizer that begins every text with a token of its own, as those of Llama do."""

    bos_token_id = 256

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [*([256] if add_special_tokens else []), *text.encode()]}

    def decode(self, tokens: list[int]) -> str:
        return "".join("<bos>" if token == 256 else chr(token) for token in tokens)


# Samples


@pytest.mark.parametrize("answer", [-1, 2, 9])
def test_the_answer_is_one_of_the_choices(answer: int) -> None:
    with pytest.raises(PdtrimError) as caught:
        sample(answer=answer)
    assert str(caught.value) == f"sample 'The sky is': answer {answer} of 2 choices"


def test_a_sample_has_choices() -> None:
    with pytest.raises(PdtrimError) as caught:
        Sample("The sky is", (), name="sky-1")
    assert str(caught.value) == "sample 'sky-1': answer 0 of 0 choices"


def test_spacing_case_and_the_order_of_choices_make_no_other_sample() -> None:
    one = sample("The  sky\nis", " Blue", " green", answer=0)
    two = sample("the sky is", "green", "blue", answer=1)
    assert one.content == two.content
    assert one.content != sample("the sky was", "green", "blue").content


# What measures does not train

LONG = "one two three four five six seven eight nine ten eleven twelve thirteen"


def held(text: str, *samples: Sample, apart: tuple[Sample, ...] = ()) -> bool:
    return calibrate(samples or [sample()], apart, TOKENIZER).holds(text)


@pytest.mark.parametrize("text", ["The sky is blue", "the  SKY is\ngreen", "sky is", "is blue"])
def test_a_short_text_that_measures_is_known_with_any_of_its_choices(text: str) -> None:
    assert held(text)
    assert held(text, sample("Grass is", " wet", " dry"), apart=(sample(),))


@pytest.mark.parametrize("text", ["The sky was blue", "blue green", "The sky is bl", "he sky is blue", "The sky is blue and"])
def test_a_short_text_that_only_looks_alike_is_not(text: str) -> None:
    assert not held(text)


def test_thirteen_words_in_a_row_are_the_same_text() -> None:
    asked = sample(f"so {LONG}", " yes", " no")
    assert held(f"before {LONG} and much behind it", asked)
    assert held(f"{LONG} no", asked)
    assert not held(f"before {LONG.replace('seven', '7')} and much behind it, more than a few words", asked)


def test_words_in_front_of_every_question_do_not_make_it_the_same_text() -> None:
    one, other = (sample(f"{LONG} {what}", " yes", " no") for what in ("about cats", "about dogs"))
    assert not held(f"{LONG} concerning birds", one, other)
    assert held(f"{LONG} about dogs", one, other)


# Encoding


def test_a_choice_is_what_comes_behind_the_prompt() -> None:
    item = encode(sample(answer=1, name="sky"), TOKENIZER)
    assert item == Item((tokens("The sky is"),), (tokens(" blue"), tokens(" green")), 1, (4, 5), "sky")
    assert item.one_prompt
    assert not item.one_token
    assert item.tokens == tokens("The sky is green")


def test_spaces_at_the_end_of_the_prompt_go_to_the_choice() -> None:
    item = encode(sample("Sky:  ", "blue", " red"), TOKENIZER)
    assert item.prompts == (tokens("Sky:"),)
    assert item.choices == (tokens("  blue"), tokens("   red"))


def test_newlines_at_the_end_of_the_prompt_go_to_the_choice_as_in_the_harness() -> None:
    # lm-evaluation-harness, TemplateLM._encode_pair: len(context) - len(context.rstrip()), whatever the white space.
    item = encode(sample("Sky:\n", "blue"), TOKENIZER)
    assert (item.prompts, item.choices) == ((tokens("Sky:"),), (tokens("\nblue"),))


@given(TEXT, st.lists(TEXT, min_size=1, max_size=3))
def test_prompt_and_choice_together_are_the_text(prompt: str, choices: list[str]) -> None:
    text = "x" + prompt
    item = encode(Sample(text, tuple(choices)), TOKENIZER)
    for number, choice in enumerate(choices):
        assert item.prompt_of(number) + item.choices[number] == tokens(text + choice)
        assert item.prompt_of(number) == tokens(text.rstrip())


def test_special_tokens_are_the_tokenizers_own() -> None:
    item = encode(sample("Sky:", " blue"), Opening())
    assert item.prompts == ((256, *tokens("Sky:")),)
    assert item.choices == (tokens(" blue"),)


def test_a_choice_may_have_a_prompt_of_its_own() -> None:
    item = encode(Sample("", (" ran", " ran"), 1, "who", prompts=("Ann", "Bo")), TOKENIZER)
    assert not item.one_prompt
    assert [item.prompt_of(number) for number in (0, 1)] == [tokens("Ann"), tokens("Bo")]
    assert item.tokens == tokens("Bo ran")


def test_one_look_tells_all_when_each_choice_is_one_token() -> None:
    assert encode(sample("Answer:", "A", "B"), TOKENIZER).one_token
    assert not encode(Sample("", ("A", "B"), prompts=("x", "y")), TOKENIZER).one_token


def test_bytes_of_a_choice_are_those_of_its_text_without_the_space() -> None:
    assert encode(sample("x", " \u00e4", "y"), TOKENIZER).choice_bytes == (2, 1)


@pytest.mark.parametrize("prompt", ["", "   "])
def test_a_prompt_needs_tokens(prompt: str) -> None:
    with pytest.raises(PdtrimError) as caught:
        encode(sample(prompt, name="sky-1"), TOKENIZER)
    assert str(caught.value) == "sample sky-1: its prompt has no tokens, so prefill would have nothing to read"


def test_a_choice_needs_tokens() -> None:
    with pytest.raises(PdtrimError) as caught:
        encode(sample("Sky:", " blue", ""), TOKENIZER)
    assert str(caught.value) == "sample 'Sky:': the choice '' has no tokens"


def test_there_is_one_prompt_or_one_a_choice() -> None:
    with pytest.raises(PdtrimError) as caught:
        encode(Sample("", ("a", "b"), name="n", prompts=("x",)), TOKENIZER)
    assert str(caught.value) == "sample 'n': 1 prompts for 2 choices"


# The two sets


def test_both_sets_are_tokenised_in_order() -> None:
    made = calibrate([sample("b"), sample("a")], [sample("c")], TOKENIZER)
    assert [item.prompts for item in made.items] == [(tokens("b"),), (tokens("a"),)]
    assert [item.prompts for item in made.held_out] == [(tokens("c"),)]
    assert made.digest == digest_of((*made.items, *made.held_out))


def test_nothing_to_measure_on_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        calibrate([], [sample()], TOKENIZER)
    assert str(caught.value) == "the calibration source gave no samples: there is nothing to measure on"


def test_what_is_kept_apart_may_not_measure() -> None:
    with pytest.raises(PdtrimError) as caught:
        calibrate([sample("a"), sample("b")], [sample("c"), sample("B", name="twin"), sample("A ")], TOKENIZER)
    assert str(caught.value) == (
        "2 of the held-out items also measure, the first is 'twin': the figures on them would flatter; take them out of "
        "one of the two"
    )


def test_a_sample_that_is_given_twice_counts_twice() -> None:
    made = calibrate([sample(name="sky"), sample(name="sky"), sample(), sample()], [], TOKENIZER)
    assert [item.name for item in made.items] == ["sky", "sky again", "sample 2", "sample 3"]
    assert len(set(made.items)) == 4


def test_a_name_that_is_taken_is_said_again_until_it_is_free() -> None:
    made = calibrate([sample(name="sky"), sample(name="sky again"), sample(name="sky")], [sample("c", name="sky")], TOKENIZER)
    assert [item.name for item in made.items] == ["sky", "sky again", "sky again again"]
    assert [item.name for item in made.held_out] == ["sky"]


@given(st.lists(st.sampled_from(["", "x", "x again", "x again again", "sample 1", "sample 1 again"]), min_size=1, max_size=5))
def test_every_item_has_a_name_of_its_own(names: list[str]) -> None:
    made = calibrate([sample(name=name) for name in names], [], TOKENIZER)
    assert len({item.name for item in made.items}) == len(names)


def test_the_digest_knows_tokens_answers_and_order_but_no_names() -> None:
    one, two = encode(sample("a"), TOKENIZER), encode(sample("b"), TOKENIZER)
    assert digest_of([one, two]) == digest_of([encode(sample("a", name="n"), TOKENIZER), two])
    others = {digest_of(items) for items in ([one, two], [two, one], [one], [], [encode(sample("a", answer=1), TOKENIZER)])}
    assert len(others) == 5


def test_the_texts_of_an_item_are_its_right_choice_and_the_dense_answer() -> None:
    item = Item(((1, 2), (3,)), ((4,), (5, 6)), 1, (1, 2), "two", dense_answer=(7, 8, 9))
    assert item.continuations("both") == ((5, 6), (7, 8, 9))
    assert (item.continuations("right"), item.continuations("answers")) == (((5, 6),), ((7, 8, 9),))
    alone = item.continued("both")
    assert (alone.prompts, alone.choices, alone.dense_answer) == (((3,),), ((5, 6), (7, 8, 9)), ())


def test_without_an_answer_there_is_the_right_choice_alone() -> None:
    item = Item(((1, 2),), ((4,), (5, 6)), 1, (1, 2), "no answer")
    assert item.continuations("both") == item.continuations("right") == ((5, 6),)
    with pytest.raises(PdtrimError, match=r"^the item 'no answer' has no answer of the dense model"):
        item.continued("answers")


def test_answers_are_no_part_of_what_names_the_items() -> None:
    """What other objectives measured on the same items stays known."""
    plain = [encode(sample("a"), TOKENIZER), encode(sample("b"), TOKENIZER)]
    one, other = ([replace(item, dense_answer=answer) for item in plain] for answer in ((1, 2), (1, 3)))
    assert digest_of(one) == digest_of(other) == digest_of(plain)
    assert answers_digest(plain) == ""
    assert len({answers_digest(items) for items in (plain, one, other, one[:1])}) == 4
