"""A pruner: another method that finds what decode loses, in place of scorer and searcher."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Drop, Pruned, Pruner, Removal, hookimpl

if TYPE_CHECKING:
    # It loads torch, which listings do without.
    from pdtrim_core.api import PruneContext


class Example(Pruner):
    """Drops neighbouring blocks, the last of them some blocks before the end."""

    name = "example"

    keep_last: int = Field(1, ge=0, description="blocks at the end that stay")

    def prune(self, context: PruneContext) -> Pruned:
        """Return what decode loses: `context.blocks` blocks, or `context.parameters` weights, whichever the method counts in."""
        last = max(context.blocks, context.model.block_count - self.keep_last)
        return Pruned(Removal(Drop(block) for block in range(last - context.blocks, last)))


@hookimpl
def pdtrim_pruners() -> Iterable[type[Pruner]]:
    """Yield the pruners of this package."""
    yield Example
