"""Offers what is no scorer, and one that is."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Plan, Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Sound(SimilarityScorer):
    """A scorer beside things that are none."""

    name = "sound"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Plan  # type: ignore[misc]
    yield "norm-ratio"  # type: ignore[misc]
    yield Sound()  # type: ignore[misc]
    yield Sound
