"""Items laid out as one batch of tokens: rows, who reads which token, and where the logits count.

Shape suffixes: B batch, T token, P prompt columns.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pdtrim_core.calibration import Item
from pdtrim_core.plan import FirstToken

Packs = Callable[[Item], bool]
"""Says whether the choices of an item share one row."""


@dataclass(frozen=True)
class Row:
    """One prompt and the choices that share it in a row; each choice sees the prompt and itself."""

    item: int
    prompt: tuple[int, ...]
    choices: tuple[tuple[int, tuple[int, ...]], ...]

    @property
    def tokens(self) -> list[int]:
        """The row's input: the prompt, then all but the last token of each choice."""
        return [*self.prompt, *(token for _, choice in self.choices for token in choice[:-1])]


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


def lay_out(items: Sequence[Item], *, first_token: FirstToken, packs: Packs, device: torch.device) -> Batch:
    """Lay items out as rows, padded on the right.

    All choices of an item that `packs` share one row and so one pass over their prompt. Otherwise each choice has its own
    row, but for items whose choices are single tokens: there one look behind the prompt tells all.
    With `first_token = "decode"` the last prompt token belongs to decode, which runs it again.
    """
    rows = [row for number, item in enumerate(items) for row in _rows(number, item, packs)]
    width = max(len(row.tokens) for row in rows)
    ids_BT = torch.tensor([[*row.tokens, *[0] * (width - len(row.tokens))] for row in rows], device=device)
    recomputed = 1 if first_token == "decode" else 0
    read = torch.tensor([[len(row.prompt) - recomputed] for row in rows], device=device)
    forked = any(sum(len(choice) > 1 for _, choice in row.choices) > 1 for row in rows)
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


def shape_of(item: Item, packs: Packs) -> tuple[int, int]:
    """Return the rows and columns that an item takes in a batch."""
    rows = _rows(0, item, packs)
    return len(rows), max(len(row.tokens) for row in rows)


def _rows(number: int, item: Item, packs: Packs) -> list[Row]:
    choices = tuple(enumerate(item.choices))
    if item.one_token or (item.one_prompt and packs(item)):
        return [Row(number, item.prompts[0], choices)]
    return [Row(number, item.prompt_of(choice[0]), (choice,)) for choice in choices]


def _segments(row: Row) -> list[tuple[int, int, int]]:
    """Return for each choice its number, its first column, and the column behind it."""
    segments, column = [], len(row.prompt)
    for number, choice in row.choices:
        segments.append((number, column, column + len(choice) - 1))
        column += len(choice) - 1
    return segments


def _scored(row: Row) -> list[tuple[int, int, int]]:
    """Return (column of the logits, token looked up there, choice) for all scored tokens of a row."""
    scored = []
    for (number, choice), (_, start, _) in zip(row.choices, _segments(row), strict=True):
        columns = [len(row.prompt) - 1, *range(start, start + len(choice) - 1)]
        scored += [(column, token, number) for column, token in zip(columns, choice, strict=True)]
    return scored


def _mask(rows: Sequence[Row], width: int) -> Tensor:
    """Return `[B, 1, T, T]`, True where a token may look: causal, but no choice sees another. Padding sees itself."""
    mask = torch.ones(width, width, dtype=torch.bool).tril().repeat(len(rows), 1, 1, 1)
    for number, row in enumerate(rows):
        for _, start, stop in _segments(row):
            mask[number, 0, stop:, start:stop] = False
        for column in range(len(row.tokens), width):
            mask[number, 0, column, column] = True
    return mask


def _positions(rows: Sequence[Row], width: int) -> Tensor:
    """Return `[B, T]`: each choice goes on from the end of the prompt."""
    positions = torch.arange(width).repeat(len(rows), 1)
    for number, row in enumerate(rows):
        for _, start, stop in _segments(row):
            positions[number, start:stop] = torch.arange(len(row.prompt), len(row.prompt) + stop - start)
    return positions
