"""Items in groups that run as one batch each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pdtrim_core.data.items import (
    Item,
)


class RowShape(NamedTuple):
    """The rows and columns that an item takes, and whether its rows are `shared` with other items, so that none is padded."""

    rows: int
    width: int
    shared: bool = False


def group_by_length(items: Sequence[Item], batch_tokens: int, shape: Callable[[Item], RowShape]) -> list[tuple[Item, ...]]:
    """Return the items in groups that run as one batch each: sorted by length, at most `batch_tokens` tokens with padding.

    Items that share rows and others do not mix. An item stays whole, so one beyond the limit makes a group of its own.
    """
    groups: list[list[Item]] = []
    shapes: list[RowShape] = []
    for its, item in sorted(
        ((shape(item), item) for item in items),
        key=lambda pair: (pair[0].shared, pair[0].width, pair[1].prompts, pair[1].name),
    ):
        shapes.append(its)
        if not groups or shapes[0].shared != its.shared or _tokens(shapes) > batch_tokens:
            groups.append([])
            shapes = [its]
        groups[-1].append(item)
    return [tuple(group) for group in groups]


def _tokens(shapes: Sequence[RowShape]) -> int:
    if shapes[0].shared:
        return sum(shape.rows * shape.width for shape in shapes)
    return sum(shape.rows for shape in shapes) * max(shape.width for shape in shapes)
