"""A scorer: how safe it looks to remove each block, before anything is measured."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Example(SimilarityScorer):
    """Scores a block by how little it changes the length of the hidden states."""

    name = "example"

    power: float = Field(1.0, gt=0, description="exponent of the ratio of lengths")

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return minus the distance of the ratio from 1: `[batch, token]` from `[batch, token, hidden]` twice."""
        ratio = after.norm(dim=-1) / before.norm(dim=-1)
        change: Tensor = (ratio**self.power - 1).abs()
        return -change


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers of this package."""
    yield Example
