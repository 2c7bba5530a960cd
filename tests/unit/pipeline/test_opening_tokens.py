"""The tokens that prompts begin with: the tokenizer's, the chat template's, then those of the items."""

from __future__ import annotations

from typing import Any

import pytest

from pdtrim_core.api import Item
from pdtrim_core.pipeline.opening_tokens import opening_tokens

BOS = 1


class Letters:
    """Tokens are letters; in front of a text goes a token of its own, unless it has none."""

    def __init__(self, bos: int | None, template: str | None = None) -> None:
        self.bos_token_id = bos
        self.eos_token_id = None
        self.chat_template = template

    def __call__(self, text: str, *, add_special_tokens: bool = True) -> dict[str, list[int]]:
        front = [self.bos_token_id] if add_special_tokens and self.bos_token_id is not None else []
        return {"input_ids": [*front, *map(ord, text)]}

    def decode(self, tokens: list[int]) -> str:
        return "".join(map(chr, tokens))

    def apply_chat_template(self, messages: list[dict[str, str]], *, tokenize: bool) -> str:
        assert not tokenize
        if self.chat_template == "refuses":
            raise ValueError("the conversation must begin with a system message")
        return f"{self.chat_template}{messages[0]['content']}"


def item(*firsts: int) -> Item:
    return Item(tuple((first, 9) for first in firsts), ((2,),) * len(firsts), 0, (1,) * len(firsts))


@pytest.mark.parametrize(
    ("tokenizer", "expected"),
    [
        (Letters(BOS), (BOS, 8, 5, 6)),
        (Letters(None), (8, 5, 6)),
        (Letters(None, "<user>"), (ord("<"), 8, 5, 6)),
        (Letters(BOS, "refuses"), (BOS, 8, 5, 6)),
    ],
)
def test_the_surest_token_comes_first_and_each_once(tokenizer: Any, expected: tuple[int, ...]) -> None:
    assert opening_tokens(tokenizer, [item(5), item(8, 6), item(8)], 256) == expected


def test_an_item_without_a_prompt_has_no_first_token() -> None:
    assert opening_tokens(Letters(None), [Item(((),), ((2,),), 0, (1,)), item(7)], 256) == (7,)


@pytest.mark.parametrize(
    ("tokenizer", "items", "expected"),
    [
        (Letters(None, "\u0400"), [item(5)], (5,)),  # a token that was added for conversations, and not to the model
        (Letters(300), [item(5)], (5,)),
        (Letters(BOS), [item(300), item(5)], (BOS, 5)),
    ],
)
def test_a_token_that_the_model_does_not_have_opens_no_prompt(
    tokenizer: Any, items: list[Item], expected: tuple[int, ...]
) -> None:
    assert opening_tokens(tokenizer, items, 256) == expected
