"""Takes longer to import than anyone likes, and talks meanwhile."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor

print("loading my big library")
time.sleep(1.1)


class Late(SimilarityScorer):
    """A scorer that comes late."""

    name = "late"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the product."""
        return (before * after).sum(dim=-1)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Late
