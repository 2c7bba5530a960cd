"""Offers scorers that no recipe could name."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Spaced(SimilarityScorer):
    """A scorer whose name has a space."""

    name = "Norm Ratio"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


class Nameless(SimilarityScorer):
    """A scorer without a name."""

    name = ""

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield from (Spaced, Nameless)
