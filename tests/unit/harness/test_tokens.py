"""Prompts and choices have the tokens that lm-evaluation-harness gives them, whatever a tokenizer puts around a text."""

from __future__ import annotations

import logging
from random import Random
from typing import Any

import pytest

from pdtrim_core.api import BlockModel
from pdtrim_core.data.items import Sample, encode
from pdtrim_core.data.tokens import opening_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.testing import tiny_transformers
from pdtrim_plugins.calibrations import Mini
from tests.unit.tokenizers_of_five_kinds import KINDS, WITHOUT_END, tokenizer_of

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from lm_eval.models.huggingface import HFLM

from pdtrim_core.harness.model import PdtrimLM

PAIRS = [
    ("The sky is", " blue"),
    ("The sky is ", "blue"),
    ("The sky is   ", " blue"),
    ("Question?\nAnswer:\n", "b"),
    ("Question?\n\n", "\nb"),
    ("Tabs\t", "\tb"),
    ("xa", "b"),
    ("xa", "bl"),
    ("\u00e4\u00f6\u4e2d ", "\u4e2d\U0001f600"),
    (" b", " b"),
    (".", "."),
    ("\u00a0x\u00a0", "y"),
    ("<bos>The sky is", " blue"),
    ("<bos> ", "blue"),
    ("<eos>x", " <eos>"),
    ("x<eos>", "<eos>"),
    ("x<bos>", " <bos>"),
    ("a" * 100, " b" * 50),
]
LOST = ("eos", "both")


def harness(tokenizer: Any, model: Any) -> HFLM:
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return HFLM(pretrained=model, tokenizer=tokenizer, batch_size=4)


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_transformers("llama")


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def theirs(kind: str, model: Any) -> HFLM:
    """The harness' own model; its tokenizer differs from ours only in what it would put behind a text."""
    return harness(tokenizer_of(WITHOUT_END[kind]), model)


@pytest.fixture(scope="module")
def ours(kind: str, model: Any) -> PdtrimLM:
    made: PdtrimLM = PdtrimLM.__new__(PdtrimLM)
    HFLM.__init__(made, pretrained=model, tokenizer=tokenizer_of(kind), batch_size=4)
    made.start_notes()
    return made


@pytest.mark.parametrize("pair", PAIRS)
def test_items_are_split_as_the_harness_splits_its_requests(kind: str, theirs: HFLM, pair: tuple[str, str]) -> None:
    prompt, choice = pair
    expected = theirs._encode_pair(prompt, choice)
    if not expected[1]:
        with pytest.raises(PdtrimError, match="has no tokens"):
            encode(Sample(prompt, (choice,)), tokenizer_of(kind))
        return
    item = encode(Sample(prompt, (choice,)), tokenizer_of(kind))
    assert ([*item.prompts[0]], [*item.choices[0]]) == expected


def test_each_choice_with_a_prompt_of_its_own_is_a_request_of_its_own(kind: str, theirs: HFLM) -> None:
    prompts, choices = ("Ann ", "<bos>Bob and Al"), (" ran off", " sat")
    item = encode(Sample("", choices, prompts=prompts), tokenizer_of(kind))
    for number, (prompt, choice) in enumerate(zip(prompts, choices, strict=True)):
        assert ([*item.prompt_of(number)], [*item.choices[number]]) == theirs._encode_pair(prompt, choice)


@pytest.mark.parametrize("prompt", ["", " ", "\n \n"])
def test_a_prompt_without_text_is_refused_whatever_is_put_in_front_of_it(kind: str, prompt: str) -> None:
    with pytest.raises(PdtrimError, match="its prompt has no tokens"):
        encode(Sample(prompt, (" blue",)), tokenizer_of(kind))


@pytest.mark.parametrize("pair", PAIRS)
def test_the_model_of_the_harness_splits_its_requests_the_same_way(ours: PdtrimLM, theirs: HFLM, pair: tuple[str, str]) -> None:
    assert ours._encode_pair(*pair) == theirs._encode_pair(*pair)


@pytest.mark.parametrize(
    "pair", [("\n", " x"), (" ", "x"), ("\t \n", "\nx"), ("<bos>", " x"), ("<bos><bos>", "x"), ("<eos>", "x")]
)
def test_a_context_of_white_space_or_special_tokens_is_split_as_the_harness_splits_it(
    ours: PdtrimLM, theirs: HFLM, pair: tuple[str, str]
) -> None:
    assert ours._encode_pair(*pair) == theirs._encode_pair(*pair)


@pytest.mark.parametrize("text", ["", "\n", "<bos>", "<eos>", "<eos><eos>", "<bos>x"])
@pytest.mark.parametrize("special", [None, True, False])
def test_texts_of_few_tokens_get_the_opening_of_the_harness(
    ours: PdtrimLM, theirs: HFLM, text: str, special: bool | None
) -> None:
    assert ours.tok_encode(text, special) == theirs.tok_encode(text, special)


@pytest.mark.parametrize("prompt", ["<bos>", "<bos><bos>", "<eos>", "<bos>The sky", "The sky"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "eos"])
def test_an_opening_that_a_tokenizer_does_not_declare_is_the_same_for_items_and_requests(
    kind: str, prompt: str, model: Any
) -> None:
    tokenizer = tokenizer_of(kind, declared=False)
    mine: PdtrimLM = PdtrimLM.__new__(PdtrimLM)
    HFLM.__init__(mine, pretrained=model, tokenizer=tokenizer, batch_size=4)
    expected = harness(tokenizer_of(WITHOUT_END[kind], declared=False), model)._encode_pair(prompt, " x")
    item = encode(Sample(prompt, (" x",)), tokenizer)
    assert mine._encode_pair(prompt, " x") == ([*item.prompts[0]], [*item.choices[0]]) == expected


@pytest.mark.parametrize("kind", LOST)
def test_the_harness_itself_loses_tokens_to_what_is_put_behind_a_text(kind: str, model: Any) -> None:
    # Why we do not do as it does; should it come to keep them, this test says so.
    plain = harness(tokenizer_of(WITHOUT_END[kind]), model)._encode_pair("The sky is", " not blue")
    found = harness(tokenizer_of(kind), model)._encode_pair("The sky is", " not blue")
    assert found == ([*plain[0], 257], [*plain[1][1:], 257])


def test_texts_that_are_scored_whole_and_prompts_to_generate_behind_have_no_end(ours: PdtrimLM, theirs: HFLM) -> None:
    texts = ["a text", "<bos>another", "x"]
    for text in texts:
        assert ours.tok_encode(text) == theirs.tok_encode(text)
        assert ours.tok_encode(text, add_special_tokens=False) == theirs.tok_encode(text, add_special_tokens=False)
        assert ours.tok_encode(text, left_truncate_len=2) == theirs.tok_encode(text, left_truncate_len=2)
    together = ["a text", "another text", "x"]
    for cut, count in ((None, 0), (4, 2), (40, 0)):
        ours.start_notes()
        mine = ours.tok_batch_encode(together, left_truncate_len=cut)
        other = theirs.tok_batch_encode(together, left_truncate_len=cut)
        assert [part.tolist() for part in mine] == [part.tolist() for part in other]
        assert ours.crowded == count


@pytest.mark.model
def test_tokens_of_the_real_model_are_those_of_the_harness_and_of_earlier_versions(smollm: BlockModel) -> None:
    tokenizer = smollm.tokenizer
    their = harness(tokenizer, smollm.model)
    drawn = [(sample.prompt, choice) for sample in Mini().draw(16, Random(0)) for choice in sample.choices]
    assert len(drawn) > 16
    for prompt, choice in [pair for pair in [*PAIRS, *drawn] if pair != (".", ".")]:  # ".." is one token there
        item = encode(Sample(prompt, (choice,)), tokenizer)
        before, whole = tokenizer(prompt.rstrip())["input_ids"], tokenizer(prompt + choice)["input_ids"]
        assert ([*item.prompts[0]], [*item.choices[0]]) == their._encode_pair(prompt, choice) == (before, whole[len(before) :])
        assert opening_of(prompt, tokenizer) == ()
