"""Scorers that compare a block's input with its output (PDTrim, Eq. 1 and 3; Table 14 for the other similarities)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, ClassVar

from pdtrim_core.api import Scorer, SimilarityScorer, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Cosine(SimilarityScorer):
    """Redundancy as the cosine between a block's input and output."""

    name = "cosine"
    cites = "PDTrim, Eq. 1 and 3 (arXiv:2509.04467); 1 minus it is ShortGPT's Block Influence (arXiv:2403.03853)"
    is_similarity: ClassVar[bool] = True

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the cosine, in [-1, 1]."""
        from torch.nn.functional import cosine_similarity  # noqa: PLC0415 - listings must not import torch

        return cosine_similarity(before, after, dim=-1)


class Dot(SimilarityScorer):
    """Redundancy as the dot product of a block's input and output; grows with their norms."""

    name = "dot"
    cites = "PDTrim, Table 14 (arXiv:2509.04467)"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the dot product."""
        return (before * after).sum(dim=-1)


class Euclidean(SimilarityScorer):
    """Redundancy as minus the Euclidean distance between a block's input and output."""

    name = "euclidean"
    cites = "PDTrim, Table 14 (arXiv:2509.04467)"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return minus the distance, 0 at most."""
        distance: Tensor = (before - after).norm(dim=-1)
        return -distance


class Norm(SimilarityScorer):
    """Length of the stream behind each block (PDTrim, Table 15): a control, since it mostly tells how deep a block is.

    It looks at no block's work: where the stream grows with depth, it calls the last blocks the safest to remove. It shows
    what a similarity that grows with the length of states brings with it.
    """

    name = "norm"
    cites = "PDTrim, Table 15 (arXiv:2509.04467)"

    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return the Euclidean norm of the block's output, 0 or more."""
        del before
        length: Tensor = after.norm(dim=-1)
        return length


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield from (Cosine, Dot, Euclidean, Norm)
