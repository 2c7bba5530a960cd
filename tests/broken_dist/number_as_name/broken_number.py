"""Offers a scorer whose name is no text."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Numbered(SimilarityScorer):
    """A scorer whose name is a number."""

    name = 5  # type: ignore[assignment]

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Numbered
