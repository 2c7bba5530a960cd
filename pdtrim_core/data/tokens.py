"""Text as tokens: with what a tokenizer puts in front of a text, and never with what it puts behind one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

PLAIN = "a"
"""A text that holds no special token, so that what a tokenizer puts around it is known."""


def tokens_of(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens of a text alone, without special tokens around it."""
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def opening_of(text: str, tokenizer: Any) -> tuple[int, ...]:
    """Return the special tokens that go in front of a text, mostly one that says that a text begins.

    They are those of lm-evaluation-harness (`HFLM.tok_encode` with its defaults): the tokenizer's own, and none where the text
    begins with the name of that token itself.
    """
    usual = in_front(tokenizer(PLAIN)["input_ids"], tokens_of(PLAIN, tokenizer))
    opening = in_front(tokenizer(text)["input_ids"], tokens_of(text, tokenizer), usual)
    first = getattr(tokenizer, "bos_token_id", None)
    first = getattr(tokenizer, "eos_token_id", None) if first is None else first
    return () if opening and first is not None and text.startswith(tokenizer.decode([first])) else opening


def chat_prompt(text: str, tokenizer: Any) -> str:
    """Return what a user says in the tokenizer's chat template, up to where the answer begins; it must have one."""
    messages = [{"role": "user", "content": text}]
    prompt: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return prompt


def in_front(whole: Sequence[int], bare: Sequence[int], usual: Sequence[int] = ()) -> tuple[int, ...]:
    """Return what a tokenizer put in front of the bare tokens of a text; `whole` may have more behind them.

    Where the text is empty or begins with a special token itself, several places fit: then `usual` decides, which is what stands
    in front of `PLAIN`.
    """
    fits = [start for start in range(len(whole) - len(bare) + 1) if tuple(whole[start : start + len(bare)]) == tuple(bare)]
    if not fits:
        return ()
    return tuple(whole[: len(usual) if len(usual) in fits else fits[0]])
