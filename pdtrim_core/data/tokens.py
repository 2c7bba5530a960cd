"""Text as tokens: with what a tokenizer puts in front of a text, and never with what it puts behind one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def tokens_of(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens of a text alone, without special tokens around it."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening_of(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that go in front of a text, mostly one that says that a text begins.

    They are those of lm-evaluation-harness (`HFLM.tok_encode` with its defaults): the tokenizer's own, and none where the text
    begins with the name of that token itself.
    """
    opening = in_front(tuple(tokenizer(text)["input_ids"]), tokens_of(text, tokenizer))
    first = getattr(tokenizer, "bos_token_id", None)
    first = getattr(tokenizer, "eos_token_id", None) if first is None else first
    return () if opening and first is not None and text.startswith(tokenizer.decode([first])) else opening


def in_front(whole: Sequence[int], bare: Sequence[int]) -> tuple[int, ...]:
    """Return what a tokenizer put in front of the bare tokens of a text; `whole` may have more behind them."""
    for start in range(len(whole) - len(bare) + 1):
        if tuple(whole[start : start + len(bare)]) == tuple(bare):
            return tuple(whole[:start])
    return ()
