"""REAP, and how often routers choose: two measures of what an expert is worth to decode.

Shape suffixes: M tokens that are sent to an expert, D hidden.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pdtrim_core.api import Pruned, Pruner, Removal
from pdtrim_plugins.pruners import experts as ex

if TYPE_CHECKING:
    from torch import Tensor

    from pdtrim_core.api import PruneContext, PruneFacts, RoutedTokens


class OfExperts(Pruner):
    """What pruners of experts have in common: those of the lowest scores go."""

    streams: ClassVar[bool] = True

    width: ex.Width = "uniform"

    @property
    def narrows(self) -> frozenset[Literal["experts"]]:
        """Experts alone."""
        return ex.NARROWS

    @property
    def uniform(self) -> bool:
        """Whether all blocks keep the same number."""
        return self.width == "uniform"

    def problems(self, facts: PruneFacts) -> list[str]:
        """Return why so much cannot go in experts."""
        return ex.problems(self.name, facts, self.width)

    def prune(self, context: PruneContext) -> Pruned:
        """Return what each block loses; ties go to the lower expert."""
        self.check(context.facts)
        if not context.parameters:
            return Pruned(Removal())
        return Pruned(ex.lowest(context.model.sizes, self.scores(context), context.parameters, self.width))

    @abstractmethod
    def scores(self, context: PruneContext) -> Mapping[int, Sequence[float]]:
        """Return a score for each expert of each block that has some; lower goes first."""


class Reap(OfExperts):
    """Removes the experts whose weighted output is shortest, on average over the tokens of decode that are sent to them.

    The score of an expert is the mean of g |f|: f is its output, and g the weight with which the block takes it, as the model
    itself computes that. An expert that no token goes to has 0. Departs from the paper in that the tokens of prompts do not
    count: decode does not run them.
    """

    name = "reap"
    cites = "REAP (arXiv:2510.13999)"

    def scores(self, context: PruneContext) -> Mapping[int, Sequence[float]]:
        """Return the mean of each expert's weighted output's length."""
        return ex.scores_of(context, weighted_norms, mean=True)


class Frequency(OfExperts):
    """Removes the experts that routers choose least often for the tokens of decode."""

    name = "frequency"

    def scores(self, context: PruneContext) -> Mapping[int, Sequence[float]]:
        """Return how often each expert is chosen."""
        return ex.scores_of(context, times_chosen, mean=False)


def times_chosen(seen: RoutedTokens, expert: int, at_M2: Tensor) -> Tensor:
    """Return 1 for each time that an expert is chosen."""
    del seen, expert
    return at_M2.new_ones(len(at_M2))


def weighted_norms(seen: RoutedTokens, expert: int, at_M2: Tensor) -> Tensor:
    """Return how long an expert's output is for the tokens sent there, times the weight that the block gives it."""
    tokens_M, places_M = at_M2.unbind(1)
    made_MD = seen.made_by(expert, seen.hidden_ND[tokens_M])
    norms_M: Tensor = made_MD.float().norm(dim=-1)
    return seen.weights_NK[tokens_M, places_M].float() * norms_M
