"""Requests of the harness as items: those with the same context are the choices of one item, so that they share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pdtrim_core.calibration import Item
from pdtrim_core.errors import PdtrimError

Tokens = tuple[int, ...]


class Request(NamedTuple):
    """A continuation to score behind a context."""

    context: Tokens
    continuation: Tokens


def fitted(request: Request, window: int) -> Request:
    """Return a request cut from the left to what a model sees, as the harness cuts it.

    The last token of a continuation is never read, so `window` + 1 tokens fit. Raises `PdtrimError` for what cannot be scored.
    """
    context, continuation = request
    if not continuation:
        raise PdtrimError("a choice has no tokens of its own behind its context: it cannot be scored")
    if len(continuation) > window:
        raise PdtrimError(f"a continuation has {len(continuation)} tokens, more than the {window} that the model sees at once")
    return Request((context + continuation)[-(window + 1) :][: -len(continuation)], continuation)


def with_prompt(request: Request, share: float) -> Request:
    """Return a request with a share of all its tokens as context; at least one token stays to be scored."""
    whole = request.context + request.continuation
    cut = min(max(len(request.context), round(share * len(whole))), len(whole) - 1)
    return Request(whole[:cut], whole[cut:])


@dataclass(frozen=True)
class Items:
    """Items, and where among them each request is: its item and its choice."""

    items: tuple[Item, ...]
    places: tuple[tuple[int, int], ...]


def items_of(requests: Sequence[Request]) -> Items:
    """Return requests as items, one a context; equal requests are one choice."""
    numbers: dict[Tokens, int] = {}
    choices: list[dict[Tokens, int]] = []
    places = []
    for context, continuation in requests:
        number = numbers.setdefault(context, len(numbers))
        if number == len(choices):
            choices.append({})
        places.append((number, choices[number].setdefault(continuation, len(choices[number]))))
    items = tuple(
        Item((context,), tuple(of_item), 0, (1,) * len(of_item), str(number))
        for (context, number), of_item in zip(numbers.items(), choices, strict=True)
    )
    return Items(items, tuple(places))
