"""Items laid out as one batch of tokens: rows, who reads which token, and where the logits count.

Shape suffixes: B batch, T token, P prompt columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from pdtrim_core.calibration import Item
from pdtrim_core.plan import FirstToken

Packs = Callable[[Item], bool]
"""Says whether the choices of an item share one row."""


class Node(NamedTuple):
    """A token of a choice that is run: `parent` is the column in front of it, `position` where it stands in its text."""

    token: int
    parent: int
    position: int


@dataclass(frozen=True)
class Row:
    """One prompt and the choices that share it in a row; each choice sees the prompt and its own tokens.

    With `shared` set, choices that begin with the same tokens share those.
    """

    item: int
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, tuple[int, ...]], ...]
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
        """The row's input: the prompt, then the tokens of the choices that are run."""
        return [*self.prompt, *(node.token for node in self.nodes)]

    @property
    def forked(self) -> bool:
        """Whether a token does not see all that stands in front of it."""
        return any(node.parent != len(self.prompt) + number - 1 for number, node in enumerate(self.nodes))


@dataclass(frozen=True, eq=False)
class Batch:
    """A batch of rows.

    `prefill_BT` is True on tokens that prefill reads. `mask_BTT` and `positions_BT` are None where the plain causal mask
    and running positions serve. Logits count at (`at_row`, `at_column`); target j is token `targets[j]`, looked up at
    position `target_at[j]`, and adds to the choice `owners[j]` = (item, choice).
    """

    ids_BT: Tensor
    prefill_BT: Tensor
    mask_BTT: Tensor | None
    positions_BT: Tensor | None
    at_row: Tensor
    at_column: Tensor
    targets: Tensor
    target_at: Tensor
    owners: tuple[tuple[int, int], ...]

    @property
    def prompt_width(self) -> int:
        """P: the columns in which some row has a token that prefill reads; prefill's branch is cut to them."""
        columns = self.prefill_BT.any(dim=0).nonzero()
        return int(columns[-1]) + 1 if len(columns) else 0


def lay_out(
    items: Sequence[Item], *, first_token: FirstToken, packs: Packs, device: torch.device, shared_tokens: bool = True
) -> Batch:
    """Lay items out as rows, padded on the right.

    All choices of an item that `packs` share one row and so one pass over their prompt, and with `shared_tokens` one pass
    over the tokens that some of them begin with. Otherwise each choice has its own
    row, but for items whose choices are single tokens: there one look behind the prompt tells all.
    With `first_token = "decode"` the last prompt token belongs to decode, which runs it again.
    """
    rows = [row for number, item in enumerate(items) for row in _rows(number, item, packs, shared=shared_tokens)]
    width = max(len(row.tokens) for row in rows)
    ids_BT = torch.tensor([[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows], device=device)
    recomputed = 1 if first_token == "decode" else 0
    read = torch.tensor([[len(row.prompt) - recomputed] for row in rows], device=device)
    forked = any(row.forked for row in rows)
    places: dict[tuple[int, int], int] = {}
    targets: list[tuple[int, int, tuple[int, int]]] = []
    for number, row in enumerate(rows):
        for column, token, choice in _scored(row):
            place = places.setdefault((number, column), len(places))
            targets.append((token, place, (row.item, choice)))
    return Batch(
        ids_BT=ids_BT,
        prefill_BT=torch.arange(width, device=device)[None] < read,
        mask_BTT=_mask(rows, width).to(device) if forked else None,
        positions_BT=_positions(rows, width).to(device) if forked else None,
        at_row=torch.tensor([row for row, _ in places], device=device),
        at_column=torch.tensor([column for _, column in places], device=device),
        targets=torch.tensor([token for token, _, _ in targets], device=device),
        target_at=torch.tensor([place for _, place, _ in targets], device=device),
        owners=tuple(owner for _, _, owner in targets),
    )


def shape_of(item: Item, packs: Packs, *, shared_tokens: bool = True) -> tuple[int, int]:
    """Return the rows and columns that an item takes in a batch."""
    rows = _rows(0, item, packs, shared=shared_tokens)
    return len(rows), max(len(row.tokens) for row in rows)


def _rows(number: int, item: Item, packs: Packs, *, shared: bool) -> list[Row]:
    choices = tuple(enumerate(item.choices))
    if item.one_token or (item.one_prompt and packs(item)):
        return [Row(number, item.prompts[0], choices, shared)]
    return [Row(number, item.prompt_of(choice[0]), (choice,)) for choice in choices]


def _scored(row: Row) -> list[tuple[int, int, int]]:
    """Return (column of the logits, token looked up there, choice) for all scored tokens of a row."""
    return [
        (row.column(number, choice[:place]), token, number)
        for number, choice in row.choices
        for place, token in enumerate(choice)
    ]


def _mask(rows: Sequence[Row], width: int) -> Tensor:
    """Return `[B, 1, T, T]`, True where a token may look: at the prompt, its own choice so far, itself. So does padding."""
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1, 1)
    for number, row in enumerate(rows):
        for column, node in enumerate(row.nodes, start=len(row.prompt)):
            mask[number, 0, column, len(row.prompt) : column] = mask[number, 0, node.parent, len(row.prompt) : column]
            mask[number, 0, len(row.tokens) :, column] = False
    return mask


def _positions(rows: Sequence[Row], width: int) -> Tensor:
    """Return `[B, T]`: each choice goes on from the end of the prompt."""
    positions = torch.arange(width).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        start = len(row.prompt)
        positions[number, start : start + len(row.nodes)] = torch.tensor([node.position for node in row.nodes], dtype=torch.long)
    return positions
