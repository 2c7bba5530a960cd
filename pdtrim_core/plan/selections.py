"""Which tokens of a prompt a block of decode reads, where these are not all: K/V selection. Blocks count from 0.

The tokens of a prompt are those whose K/V prefill hands over: all but the last where decode makes the first token, since decode
runs that one itself. Decode's own tokens are always read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pdtrim_core.errors import PlanError
from pdtrim_core.wording import shown

LEAST = 16
"""Tokens that are read at each end of a prompt at least, where it has as many."""


@dataclass(frozen=True, order=True)
class Edges:
    """A block of decode that reads the first and the last tokens of a prompt.

    `head` and `tail` are shares of the prompt's tokens, as fractions of 1, rounded up to whole tokens; at least `LEAST` are
    read at each end. `block` is where the layer of decode is placed: of a merged block, the first.
    """

    block: int
    head: float
    tail: float

    def __post_init__(self) -> None:
        if not all(isinstance(share, int | float) and 0 < share <= 1 for share in (self.head, self.tail)) or not self.kept <= 1:
            raise PlanError(
                f"block {shown(self.block)} reads shares of {shown(self.head)} and {shown(self.tail)} at the ends of a prompt: "
                "each is above 0, and together they are 1 at most"
            )

    @property
    def kept(self) -> float:
        """The share of a long prompt's tokens that is read."""
        return self.head + self.tail

    def read(self, tokens: int) -> tuple[int, int]:
        """Return how many tokens are read at the head and at the tail of a prompt of so many."""
        head = min(tokens, max(LEAST, math.ceil(self.head * tokens)))
        return head, min(tokens - head, max(LEAST, math.ceil(self.tail * tokens)))

    def __str__(self) -> str:
        return f"{self.block} edges {self.head:g}+{self.tail:g}"


@dataclass(frozen=True, order=True)
class FirstOnly:
    """A block of decode that reads nothing of a prompt but its first token, on which much of attention rests."""

    block: int

    def read(self, tokens: int) -> tuple[int, int]:
        """Return how many tokens are read at the head and at the tail of a prompt of so many."""
        return min(tokens, 1), 0

    def __str__(self) -> str:
        return f"{self.block} first"


Selection = Edges | FirstOnly
_KINDS: Mapping[str, Callable[..., Selection]] = {"edges": Edges, "first-only": FirstOnly}
_KIND_OF: Mapping[object, str] = {kind: name for name, kind in _KINDS.items()}


def selection_to_json(selection: Selection) -> dict[str, Any]:
    """Return a selection as JSON data: its kind and its fields."""
    return {"kind": _KIND_OF[type(selection)], **vars(selection)}


def selection_from_json(data: Mapping[str, Any]) -> Selection:
    """Return the selection that `selection_to_json` wrote; raises `PlanError` on anything else."""
    try:
        given = {key: value for key, value in data.items() if key != "kind"}
        if any(isinstance(value, bool) for value in given.values()) or type(given["block"]) is not int:
            raise TypeError(data)
        return _KINDS[data["kind"]](**given)
    except (KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"not a K/V selection of a plan: {shown(data)}") from error
