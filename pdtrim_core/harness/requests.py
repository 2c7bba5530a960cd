"""Requests of the harness as items: those with the same context are the choices of one item, so that they share a pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError

Tokens = tuple[int, ...]
CHOICE_TOKENS = 256
"""Tokens that the choices of an item may have whatever the length of their context."""


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
    """Return requests as items, those behind the same context together as far as that saves more than it costs.

    Equal requests of an item are one choice.
    """
    open_items: dict[Tokens, int] = {}
    choices: list[dict[Tokens, int]] = []
    contexts: list[Tokens] = []
    places = []
    for context, continuation in requests:
        number = open_items.get(context)
        if number is None or not _has_room(choices[number], request=Request(context, continuation)):
            number = open_items[context] = len(contexts)
            contexts.append(context)
            choices.append({})
        places.append((number, choices[number].setdefault(continuation, len(choices[number]))))
    items = tuple(
        Item((context,), tuple(of_item), 0, (1,) * len(of_item), str(number))
        for number, (context, of_item) in enumerate(zip(contexts, choices, strict=True))
    )
    return Items(items, tuple(places))


def _has_room(choices: dict[Tokens, int], request: Request) -> bool:
    """Tell whether one more choice is to share an item with others.

    Choices of one item share the pass over their context, but each is masked from all others: long continuations of a short
    context run faster as items of their own.
    """
    beside = sum(map(len, choices)) + len(request.continuation)
    return request.continuation in choices or beside <= max(CHOICE_TOKENS, 4 * len(request.context))
