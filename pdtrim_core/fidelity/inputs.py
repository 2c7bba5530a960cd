"""What fidelity is measured on: items with a name, and what tells them from others."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pdtrim_core.data.items import Item
from pdtrim_core.data.tokens import opening_of, tokens_of
from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.reading import UnreadableError, read_text
from pdtrim_core.results.fidelity import TASK

T = TypeVar("T")
ITEMS = 64
"""Items of a benchmark or a text, unless another number is asked for."""
WINDOW_TOKENS = 128
"""Tokens of a window of text: prompt and continuation."""
TEXT_CHARACTERS = 2_000_000
"""Characters of a text that are read into tokens; what is behind them is left out."""
NAME_CHARACTERS = 60


@dataclass(frozen=True)
class Needle:
    """What an answer must contain, and how deep it lies in the prompt, in percent."""

    depth: int
    text: str


@dataclass(frozen=True)
class Inputs:
    """Items that fidelity is measured on, beside those that a run held out.

    `name` becomes part of the task's name, `source` says what they are, for tables of several. `needles` has one for each item of
    a needle test.
    """

    name: str
    items: tuple[Item, ...]
    source: Mapping[str, Any]
    needles: tuple[Needle, ...] = field(default=())

    @property
    def task(self) -> str:
        """The name under which the figures are kept and shown."""
        return f"{TASK}:{self.name}"


def read_whole_text(path: Path) -> str:
    """Return a text from a file. Raises `PdtrimError` for a file that is missing, empty or no text."""
    try:
        text = read_text(path)
    except FileNotFoundError:
        raise PdtrimError(f"--text: {path} does not exist") from None
    except UnreadableError as error:
        raise PdtrimError(f"--text: {error}; it takes a text file in UTF-8") from None
    if not text.strip():
        raise PdtrimError(f"--text: {path} is empty")
    return text[:TEXT_CHARACTERS]


def name_of(path: Path) -> str:
    """Return a file's name as a part of a task's."""
    return re.sub(r"[^A-Za-z0-9_.-]", "_", path.name)[:NAME_CHARACTERS]


def spread(things: Sequence[T], count: int) -> list[T]:
    """Return at most so many, evenly spaced."""
    if count >= len(things):
        return list(things)
    return [things[number * len(things) // count] for number in range(count)]


def text_inputs(text: str, name: str, tokenizer: Any, *, share: float, count: int = ITEMS) -> Inputs:
    """Return windows of a text, evenly spaced: `share` of each is prompt, the rest is its continuation.

    Raises `PdtrimError` for a text that is shorter than a window.
    """
    tokens = tokens_of(text, tokenizer)
    starts = range(0, len(tokens) - WINDOW_TOKENS + 1, WINDOW_TOKENS)
    if not starts:
        raise PdtrimError(
            f"--text: {name} has {len(tokens)} tokens, and one window of it takes {WINDOW_TOKENS}: give a longer text"
        )
    prompt = min(WINDOW_TOKENS - 1, max(1, round(share * WINDOW_TOKENS)))
    opening = opening_of(text, tokenizer)
    items = tuple(
        Item(
            (opening + tokens[start : start + prompt],),
            (tokens[start + prompt : start + WINDOW_TOKENS],),
            0,
            (max(1, len(tokenizer.decode(list(tokens[start + prompt : start + WINDOW_TOKENS])).encode())),),
            f"{name}:{start}",
        )
        for start in spread(starts, count)
    )
    return Inputs(name, items, {"text": name, "prompt_share": share})
