"""A needle test: a number is told somewhere in a long prompt, and asked for at its end.

The form is the single needle of RULER (Hsieh et al., 2024): a key and a number in a sentence of their own, sentences around it
that have nothing to do with it, and a question that the beginning of the answer follows. The words are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from random import Random
from typing import Any

from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.data.tokens import chat_prompt, tokens_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.fidelity.inputs import Inputs, Needle
from pdtrim_core.model.block_model import BlockModel

DEPTHS = (0, 25, 50, 75, 100)
"""Where needles lie, in percent of the prompt's sentences in front of them."""
NEEDLES, NEEDLE_ANSWER_TOKENS = 20, 24
"""Prompts, unless another number is asked for, and tokens of an answer at most."""
KEYS = ("lamp", "bridge", "garden", "kettle", "ladder", "mirror", "engine", "violin", "tunnel", "basket")
WHO = ("farmer", "teacher", "sailor", "painter", "doctor", "baker", "child", "neighbour", "visitor", "driver")
DID = ("carried", "found", "watched", "cleaned", "sold", "moved", "counted", "borrowed", "painted", "hid")
WHAT = ("old chair", "small boat", "blue cup", "heavy box", "warm coat", "paper map", "glass jar", "iron gate", "loaf", "clock")
WHERE = ("near the river", "behind the house", "in the market", "at the station", "on the hill", "under a tree", "by the sea")
WHEN = ("in the morning", "before lunch", "after the rain", "last winter", "every Sunday", "late at night", "in early spring")

Haystack = Callable[[int], Iterator[str]]
"""The sentences around a needle, of the prompt with a number."""


def needle_inputs(model: BlockModel, tokens: int, *, count: int = NEEDLES, text: str = "", name: str = "") -> Inputs:
    """Return prompts of at most so many tokens, and at least so many less a sentence, each with a needle.

    The sentences are a seeded grammar's, or those of a `text` with a name. Raises `PdtrimError` for more tokens than the model
    has positions, for fewer than the question takes, and for a text that is too short.
    """
    most = getattr(model.config, "max_position_embeddings", None)
    if most is not None and tokens > most:
        raise PdtrimError(f"--prompt-tokens {tokens}: {model.name or 'the model'} reads at most {most} tokens: take fewer")
    haystack = _grammar if not text else _from_text(text, count)
    made = [_prompt(model.tokenizer, tokens, number, haystack(number), name) for number in range(count)]
    source = {"needle": tokens, "haystack": name or "grammar"}
    return Inputs(
        "-".join(["needle", str(tokens), *([name] if name else [])]), tuple(i for i, _ in made), source, tuple(n for _, n in made)
    )


def _prompt(tokenizer: Any, tokens: int, number: int, sentences: Iterator[str], name: str) -> tuple[Item, Needle]:
    rng = Random(f"needle {number}")  # noqa: S311 - a reproducible draw, nothing secret
    key, value = rng.choice(KEYS), str(rng.randrange(100_000, 1_000_000))
    depth = DEPTHS[number % len(DEPTHS)]

    def item_of(around: Sequence[str]) -> Item:
        at = round(depth / 100 * len(around))
        body = " ".join([*around[:at], f"The code of the {key} is {value}.", *around[at:]])
        asked = _as_chat(f"{body}\nWhat is the code of the {key}?", tokenizer)
        return encode(Sample(f"{asked}The code of the {key} is", (f" {value}",), name=f"needle {number} at {depth} %"), tokenizer)

    room = tokens - len(item_of([]).prompts[0])
    if room < 0:
        raise PdtrimError(
            f"--prompt-tokens {tokens}: the number and the question alone take {tokens - room} tokens of this model: take more"
        )
    around, left, short = list[str](), room, False
    while left > 0:
        sentence = next(sentences, None)
        if sentence is None:
            short = True
            break
        around.append(sentence)
        left -= len(tokens_of(f" {sentence}", tokenizer))
    # Tokens of a whole text may be fewer or more than those of its sentences.
    item = item_of(around)
    while len(item.prompts[0]) > tokens:
        around.pop()
        item = item_of(around)
    if short:
        raise PdtrimError(
            f"--text: {name} is too short for a prompt of {tokens} tokens: give a longer text, or a lower --prompt-tokens"
        )
    return item, Needle(depth, value)


def _as_chat(asked: str, tokenizer: Any) -> str:
    """Return what is asked in the tokenizer's chat template, where it has one, up to where the answer begins."""
    return chat_prompt(asked, tokenizer) if getattr(tokenizer, "chat_template", None) else f"{asked} "


def _grammar(number: int) -> Iterator[str]:
    rng = Random(f"haystack {number}")  # noqa: S311 - the same
    while True:
        who, did, what, where, when = (rng.choice(words) for words in (WHO, DID, WHAT, WHERE, WHEN))
        yield f"The {who} {did} the {what} {where} {when}."


def _from_text(text: str, count: int) -> Haystack:
    """Return the sentences of a text; each prompt begins at another one, and goes on at the text's beginning behind its end."""
    sentences = [" ".join(part.split()) for part in re.split(r"(?<=[.!?])\s+|\n+", text) if part.strip()]

    def haystack(number: int) -> Iterator[str]:
        start = number * len(sentences) // count
        return islice((*sentences[start:], *sentences[:start]), len(sentences))

    return haystack
