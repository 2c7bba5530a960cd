"""A scorer that compares hidden states, which is less to write than a scorer from nothing."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from pdtrim_core.api.plan_kinds import Scorer
from pdtrim_core.data.scores import Scores, pair_scores

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api.score_context import ScoreContext


class SimilarityScorer(Scorer):
    """A scorer that compares hidden states before and after a block; the means and the pairs come with it.

    Set `is_similarity` where the numbers are cosines, in [-1, 1]; others are used by rank.
    """

    is_similarity: ClassVar[bool] = False
    streams: ClassVar[bool] = True

    @abstractmethod
    def similarity(self, before: Tensor, after: Tensor) -> Tensor:
        """Return how alike two states are, `[batch, token]` from `[batch, token, hidden]` twice, in float32.

        Higher is more alike, so safer to remove.
        """

    def score(self, context: ScoreContext) -> Scores:
        """Return the mean similarity over all real tokens, and the pair scores of PDTrim, Eq. 3."""
        one, two = context.mean_over_tokens(self.similarity)
        return Scores(block=one, pair=pair_scores(one, two), similarity=self.is_similarity)
