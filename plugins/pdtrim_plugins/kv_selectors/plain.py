"""Selectors that look at no attention: the uppermost blocks read a prompt's first token, or all blocks read everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import FirstOnly, KvSelector, Selection

if TYPE_CHECKING:
    from pdtrim_core.api import SelectionContext


class FirstOnlySelector(KvSelector):
    """Lets the uppermost blocks of decode read nothing of a prompt but its first token.

    Much of attention rests on the first token in any case. Answers that need the rest of a prompt get it from the blocks below.
    """

    name = "first-only"
    cites = "SPEED (arXiv:2605.06105)"

    upper: float = Field(0.25, gt=0, le=1, description="share of decode's blocks, the uppermost ones; at least one block")

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        """Return the first token for the uppermost blocks."""
        count = max(1, round(self.upper * len(context.blocks)))
        return [FirstOnly(block) for block in context.blocks[-count:]]


class All(KvSelector):
    """Lets every block of decode read whole prompts, as without a selector: what others are compared with in a sweep."""

    name = "all"
    selects = False

    def select(self, context: SelectionContext) -> Sequence[Selection]:
        """Return nothing."""
        del context
        return ()
