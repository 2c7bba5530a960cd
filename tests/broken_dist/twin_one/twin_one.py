"""Offers a scorer that another distribution offers too."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Twin(SimilarityScorer):
    """Number one of two."""

    name = "twin"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Twin
