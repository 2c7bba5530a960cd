"""Forgets to mark its hook."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Scorer, SimilarityScorer

if TYPE_CHECKING:
    from torch import Tensor


class Fine(SimilarityScorer):
    """A scorer that nobody will see."""

    name = "fine"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Fine
