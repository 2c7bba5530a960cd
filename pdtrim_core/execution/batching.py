"""Items laid out as one batch of tokens: rows, who reads which token, and where the logits count.

Shape suffixes: B batch, T token; prefill's own branch has P rows and Q tokens.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pdtrim_core.data.items import Item
from pdtrim_core.execution.grouping import RowShape
from pdtrim_core.plan.plan import FirstToken

ROW_TOKENS = 64
"""Tokens of a row that several segments share: enough for little to stay empty at its end, few enough that attention, which
looks at the whole row, costs little beside the rest of a block."""


class Node(NamedTuple):
    """A token of a choice that is run: `parent` is the column in front of it, `position` its position in the text."""

    token: int
    parent: int
    position: int


@dataclass(frozen=True)
class Segment:
    """One prompt and the choices behind it, side by side; each choice sees the prompt and its own tokens.

    With `shared` set, choices that begin with the same tokens share those. Columns count from the segment's beginning.
    """

    item: int
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, tuple[int, ...]], ...] = ()
    shared: bool = True

    @cached_property
    def _columns(self) -> dict[tuple[int, tuple[int, ...]], int]:
        """The column of each beginning of a choice that is run, which is all but its last token."""
        columns: dict[tuple[int, tuple[int, ...]], int] = {}
        for number, choice in self.choices:
            for length in range(1, len(choice)):
                columns.setdefault(self._beginning(number, choice[:length]), len(self.prompt) + len(columns))
        return columns

    def _beginning(self, number: int, tokens: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        return (0 if self.shared else number, tokens)

    def column(self, number: int, tokens: tuple[int, ...]) -> int:
        """Return the column that tells what follows the prompt and so many tokens of a choice."""
        return self._columns[self._beginning(number, tokens)] if tokens else len(self.prompt) - 1

    @cached_property
    def nodes(self) -> tuple[Node, ...]:
        """The tokens behind the prompt, in the order of their columns."""
        return tuple(
            Node(tokens[-1], self.column(number, tokens[:-1]), len(self.prompt) + len(tokens) - 1)
            for number, tokens in self._columns
        )

    @property
    def tokens(self) -> list[int]:
        """The segment's input: the prompt, then the tokens of the choices that are run."""
        return [*self.prompt, *(node.token for node in self.nodes)]

    @property
    def forked(self) -> bool:
        """Whether a token does not see all tokens in front of it."""
        return any(node.parent != len(self.prompt) + number - 1 for number, node in enumerate(self.nodes))

    def __len__(self) -> int:
        return len(self.prompt) + len(self._columns)


class Position(NamedTuple):
    """Where a segment begins."""

    row: int
    column: int


@dataclass(frozen=True, eq=False)
class Rows:
    """Segments in rows, padded on the right.

    `mask_BTT` (`[B, 1, T, T]`) and `positions_BT` are None where the plain causal mask and running positions serve.
    """

    ids_BT: Tensor
    mask_BTT: Tensor | None
    positions_BT: Tensor | None


class Firsts(NamedTuple):
    """The first tokens `[N]` of prompts, in any order, and where each is, counted through all rows."""

    ids_N: Tensor
    at_N: Tensor


class Span(NamedTuple):
    """Where a segment is: a row, its first column and the one behind its last; prefill reads `read` tokens of its prompt."""

    row: int
    start: int
    stop: int
    read: int


@dataclass(frozen=True, eq=False)
class Prompts:
    """The tokens that prefill reads, in rows of their own.

    `source_PQ` says where each is in the batch, and `real_N` which of them are no padding; both count tokens through all
    rows. `firsts` are those that begin a prompt, as they are placed in the batch, and `own_firsts` as they are in these rows.
    `spans` are the segments of the batch whose prompts they are.
    """

    rows: Rows
    source_PQ: Tensor
    real_N: Tensor
    firsts: Firsts
    own_firsts: Firsts
    spans: tuple[Span, ...]

    @cached_property
    def places(self) -> Tensor:
        """Where in the batch the tokens `[N]` that prefill reads are, counted through all rows."""
        return self.source_PQ.flatten()[self.real_N]


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of rows; `prompts` is None where prefill reads nothing.

    Logits count at (`at_row`, `at_column`); target j is token `targets[j]`, looked up at position `target_at[j]`, and adds
    to the choice `owners[j]` = (item, choice).
    """

    rows: Rows
    prompts: Prompts | None
    at_row: Tensor
    at_column: Tensor
    targets: Tensor
    target_at: Tensor
    owners: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RowLayout:
    """How items become rows.

    With `row_tokens` the choices of an item share one pass over their prompt, with `share_tokens` one pass over the tokens
    that some of them begin with, and segments share rows of up to so many tokens. Without it each choice has its own row, but
    for items whose choices are single tokens: there one look behind the prompt tells all. With `first_token = "decode"` the
    last prompt token belongs to decode, which runs it again.
    """

    first_token: FirstToken = "decode"
    row_tokens: int | None = None
    share_tokens: bool = True

    def segments(self, number: int, item: Item) -> list[Segment]:
        """Return the segments of an item that has a number."""
        choices = tuple(enumerate(item.choices))
        if item.one_token or (item.one_prompt and self.row_tokens):
            return [Segment(number, item.prompts[0], choices, self.share_tokens)]
        return [Segment(number, item.prompt_of(choice[0]), (choice,)) for choice in choices]

    def shape(self, item: Item) -> RowShape:
        """Return the rows and columns that an item takes in a batch."""
        segments = self.segments(0, item)
        return RowShape(len(segments), max(len(segment) for segment in segments), shared=bool(self.row_tokens))

    def batch(self, items: Sequence[Item], device: torch.device) -> Batch:
        """Lay items out as one batch."""
        segments = [segment for number, item in enumerate(items) for segment in self.segments(number, item)]
        places = self._places(segments)
        rows = _rows(segments, places, device)
        looks: dict[tuple[int, int], int] = {}
        targets: list[tuple[int, int, tuple[int, int]]] = []
        for segment, place in zip(segments, places, strict=True):
            for column, token, choice in _scored(segment):
                look = looks.setdefault((place.row, place.column + column), len(looks))
                targets.append((token, look, (segment.item, choice)))
        return Batch(
            rows=rows,
            prompts=self._prompts(segments, places, rows.ids_BT.shape[1], device),
            at_row=torch.tensor([row for row, _ in looks]),
            at_column=torch.tensor([column for _, column in looks]),
            targets=torch.tensor([token for token, _, _ in targets]),
            target_at=torch.tensor([look for _, look, _ in targets]),
            owners=tuple(owner for _, _, owner in targets),
        )

    def _prompts(
        self, segments: Sequence[Segment], places: Sequence[Position], width: int, device: torch.device
    ) -> Prompts | None:
        behind = 1 if self.first_token == "decode" else 0
        read = [(Segment(s.item, s.prompt[: len(s.prompt) - behind]), p) for s, p in zip(segments, places, strict=True)]
        read = [(prompt, place) for prompt, place in read if len(prompt)]
        if not read:
            return None
        spans = (
            Span(place.row, place.column, place.column + len(segment), len(segment.prompt) - behind)
            for segment, place in zip(segments, places, strict=True)
        )
        prompts = [prompt for prompt, _ in read]
        own_places = self._places(prompts)
        rows = _rows(prompts, own_places, device)
        source_PQ = torch.full(rows.ids_BT.shape, -1)
        for (prompt, place), own in zip(read, own_places, strict=True):
            first = place.row * width + place.column
            source_PQ[own.row, own.column : own.column + len(prompt)] = torch.arange(first, first + len(prompt))
        real_N = (source_PQ.flatten() >= 0).nonzero()[:, 0]
        own_N = torch.tensor([own.row * source_PQ.shape[1] + own.column for own in own_places])
        ids_N = torch.tensor([prompt.prompt[0] for prompt in prompts]).to(device)
        firsts, own_firsts = (Firsts(ids_N, at_N.to(device)) for at_N in (source_PQ.flatten()[own_N], own_N))
        sources = source_PQ.clamp(min=0).to(device)
        return Prompts(rows, sources, real_N.to(device), firsts, own_firsts, tuple(span for span in spans if span.read))

    def _places(self, segments: Sequence[Segment]) -> list[Position]:
        if not self.row_tokens:
            return [Position(row, 0) for row in range(len(segments))]
        return fill([len(segment) for segment in segments], self.row_tokens)


def fill(lengths: Sequence[int], row_tokens: int) -> list[Position]:
    """Return places for segments in rows that leave little empty.

    No row is longer than `row_tokens`, or than the longest segment where that is longer.
    """
    limit = max(row_tokens, *lengths)
    fewest = math.ceil(sum(lengths) / limit)
    best: list[Position] = []
    least = math.inf
    # Twice the fewest rows always do: if none of them has room for a segment, more than half of each is taken.
    for rows in range(fewest, min(len(lengths), 2 * fewest) + 1):
        places, width = _even_rows(lengths, rows)
        if width <= limit and rows * width <= least:
            best, least = places, rows * width
    return best


def _even_rows(lengths: Sequence[int], rows: int) -> tuple[list[Position], int]:
    """Put the longest segments first, each into the row that is shortest so far; return places and width."""
    ends = [(0, row) for row in range(rows)]
    places = [Position(0, 0)] * len(lengths)
    for number in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        end, row = ends[0]
        places[number] = Position(row, end)
        heapq.heapreplace(ends, (end + lengths[number], row))
    return places, max(end for end, _ in ends)


def _scored(segment: Segment) -> list[tuple[int, int, int]]:
    """Return (column of the logits, token looked up there, choice) for all scored tokens of a segment."""
    return [
        (segment.column(number, choice[:place]), token, number)
        for number, choice in segment.choices
        for place, token in enumerate(choice)
    ]


def _rows(segments: Sequence[Segment], places: Sequence[Position], device: torch.device) -> Rows:
    count = 1 + max(place.row for place in places)
    width = max(place.column + len(segment) for segment, place in zip(segments, places, strict=True))
    ids_BT = torch.zeros(count, width, dtype=torch.long)
    for segment, (row, start) in zip(segments, places, strict=True):
        ids_BT[row, start : start + len(segment)] = torch.tensor(segment.tokens)
    if count == len(segments) and not any(segment.forked for segment in segments):
        return Rows(ids_BT.to(device), None, None)
    mask_BTT = torch.eye(width, dtype=torch.bool).repeat(count, 1, 1, 1)  # padding looks at itself
    positions_BT = torch.zeros(count, width, dtype=torch.long)
    for segment, (row, start) in zip(segments, places, strict=True):
        columns = slice(start, start + len(segment))
        mask_BTT[row, 0, columns, columns] = _sight(segment)
        positions_BT[row, columns] = torch.tensor([*range(len(segment.prompt)), *(node.position for node in segment.nodes)])
    return Rows(ids_BT.to(device), mask_BTT.to(device), positions_BT.to(device))


def _sight(segment: Segment) -> Tensor:
    """Return `[T, T]`, True where a token of a segment may look: at the prompt, its own choice so far, itself."""
    prompt = len(segment.prompt)
    sight = torch.ones(len(segment), len(segment), dtype=torch.bool).tril()
    for column, node in enumerate(segment.nodes, start=prompt):
        sight[column, prompt:column] = sight[node.parent, prompt:column]
    return sight
