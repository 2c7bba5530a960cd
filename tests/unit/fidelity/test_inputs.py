"""Inputs of fidelity: windows of texts, prompts with a needle, and files that are none."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import PdtrimError
from pdtrim_core.fidelity.inputs import WINDOW_TOKENS, name_of, read_whole_text, text_inputs
from pdtrim_core.fidelity.needle import DEPTHS, needle_inputs
from pdtrim_core.fidelity.retrieved import retrieved
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.models import ByteTokenizer

WORDS = ("anvil", "birch", "cloud", "delta", "ember", "field")


def prose(sentences: int) -> str:
    rng = random.Random(0)
    return " ".join(" ".join(rng.choice(WORDS) for _ in range(6)).capitalize() + "." for _ in range(sentences))


def model_of(positions: int = 4096, template: str | None = None) -> BlockModel:
    model = tiny_llama(max_position_embeddings=positions)
    if template is not None:
        model.tokenizer = ChatTokenizer()
    return model


class ChatTokenizer(ByteTokenizer):
    chat_template = "used"

    def apply_chat_template(self, messages: list[dict[str, str]], **options: Any) -> str:
        assert options == {"tokenize": False, "add_generation_prompt": True}
        return f"<user>{messages[0]['content']}</user><assistant>"


def told(tokens: tuple[int, ...]) -> str:
    return ByteTokenizer().decode(list(tokens))


# Windows


@pytest.mark.parametrize(("share", "prompt"), [(0.5, 64), (0.25, 32), (0.001, 1), (0.99, 127)])
def test_windows_of_a_text_are_its_tokens_in_order_without_a_gap(share: float, prompt: int) -> None:
    text = prose(100)
    found = text_inputs(text, "prose.txt", ByteTokenizer(), share=share, count=1000)
    assert found.task == "fidelity:prose.txt"
    assert {len(item.prompts[0]) for item in found.items} == {prompt}
    assert {len(item.tokens) for item in found.items} == {WINDOW_TOKENS}
    joined = "".join(told(item.tokens) for item in found.items)
    assert text.startswith(joined)
    assert len(text) - len(joined) < WINDOW_TOKENS


def test_fewer_windows_are_spread_over_the_text() -> None:
    found = text_inputs(prose(200), "prose.txt", ByteTokenizer(), share=0.5, count=4)
    starts = [int(item.name.partition(":")[2]) for item in found.items]
    gaps = {b - a for a, b in pairwise(starts)}
    assert len(starts) == 4
    assert max(gaps) - min(gaps) <= WINDOW_TOKENS


def test_a_text_shorter_than_a_window_is_refused() -> None:
    with pytest.raises(PdtrimError, match=r"prose.txt has 127 tokens, and one window of it takes 128: give a longer text"):
        text_inputs("a" * 127, "prose.txt", ByteTokenizer(), share=0.5)
    assert len(text_inputs("a" * 128, "prose.txt", ByteTokenizer(), share=0.5).items) == 1


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b" \n\t ", "is empty"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "takes a text file in UTF-8"),
        ("Gr\u00fc\u00dfe".encode("latin-1"), "takes a text file in UTF-8"),
    ],
)
def test_a_file_that_is_no_text_is_refused_in_one_line(content: bytes | None, told: str, tmp_path: Path) -> None:
    path = tmp_path / "text"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(PdtrimError, match=told) as caught:
        read_whole_text(path)
    assert str(caught.value).startswith(f"--text: {path}")
    assert "\n" not in str(caught.value)


def test_a_folder_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match="it is a folder"):
        read_whole_text(tmp_path)


def test_a_name_of_a_file_is_fit_for_a_task() -> None:
    assert name_of(Path("a/b/My text: 1.txt")) == "My_text__1.txt"


# Needles


@pytest.mark.parametrize("tokens", [256, 1000, 4096])
def test_a_prompt_is_as_long_as_asked_less_a_sentence_at_most(tokens: int) -> None:
    found = needle_inputs(model_of(), tokens, count=5)
    assert found.task == f"fidelity:needle-{tokens}"
    for item in found.items:
        assert tokens - 70 <= len(item.prompts[0]) <= tokens


def test_the_number_is_in_the_prompt_once_at_its_depth_and_is_what_follows() -> None:
    found = needle_inputs(model_of(), 2000, count=10)
    assert [needle.depth for needle in found.needles] == [*DEPTHS, *DEPTHS]
    for item, needle in zip(found.items, found.needles, strict=True):
        prompt = told(item.prompts[0])
        assert prompt.count(needle.text) == 1
        assert told(item.choices[0]).strip() == needle.text
        body = prompt.partition("\nWhat is the code")[0]
        assert abs(body.index(needle.text) / len(body) - needle.depth / 100) < 0.06
    assert len({needle.text for needle in found.needles}) == 10


def test_the_same_call_gives_the_same_prompts() -> None:
    assert needle_inputs(model_of(), 512) == needle_inputs(model_of(), 512)


def test_a_chat_template_is_used_where_there_is_one() -> None:
    (item,) = needle_inputs(model_of(template="used"), 512, count=1).items
    prompt = told(item.prompts[0])
    assert prompt.startswith("<user>The code of the")
    assert "?</user><assistant>The code of the" in prompt


def test_the_sentences_can_be_those_of_a_text_and_begin_at_other_places() -> None:
    text = prose(60)
    found = needle_inputs(model_of(), 800, count=3, text=text, name="prose.txt")
    assert found.task == "fidelity:needle-800-prose.txt"
    beginnings = set()
    for item, needle in zip(found.items, found.needles, strict=True):
        body = told(item.prompts[0]).partition("\nWhat")[0]
        around = [part for part in body.split(". ") if needle.text not in part]
        assert all(part.rstrip(".") in text for part in around)
        beginnings.add(around[0])
    assert len(beginnings) == 3


def test_more_tokens_than_the_model_reads_are_refused() -> None:
    assert needle_inputs(model_of(positions=300), 300, count=1).items
    with pytest.raises(PdtrimError, match=r"--prompt-tokens 301: .* reads at most 300 tokens: take fewer"):
        needle_inputs(model_of(positions=300), 301, count=1)


def test_a_prompt_too_short_for_its_question_is_refused() -> None:
    with pytest.raises(PdtrimError, match=r"--prompt-tokens 64: the number and the question alone take \d\d tokens"):
        needle_inputs(model_of(), 64)


def test_a_text_too_short_for_the_prompt_is_refused() -> None:
    with pytest.raises(PdtrimError, match=r"--text: prose.txt is too short for a prompt of 2000 tokens"):
        needle_inputs(model_of(), 2000, text=prose(10), name="prose.txt")


def test_shares_are_over_all_and_by_depth_with_the_p_of_what_changed() -> None:
    needles = needle_inputs(model_of(), 256, count=10).needles
    dense_has = [True] * 10
    has = [True] * 4 + [False] + [True] * 4 + [False]
    found = retrieved(needles, has, dense_has)
    assert found["needle"].value == 0.8
    assert found["needle"].error == pytest.approx((0.8 * 0.2 / 9) ** 0.5)
    assert [found[f"needle_at_{depth}"].value for depth in DEPTHS] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert found["needle_p"].value == 0.5  # two changes, both lost
    assert retrieved(needles, dense_has, dense_has)["needle_p"].value == 1.0
