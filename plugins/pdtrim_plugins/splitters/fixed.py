"""Splitters that compare nothing: prefill loses all that decode loses, nothing, or what the searcher found."""

from __future__ import annotations

from random import Random

from pdtrim_core.api import CostModel, Plan, Requests, StageSplitter, measure


class Unified(StageSplitter):
    """Prefill loses all that decode loses: one model for both stages."""

    name = "unified"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure the result, and nothing else."""
        del costs, rng
        final = Plan.unified(plan.decode)
        yield from measure(final)
        return final

    def steps(self, plan: Plan) -> int | None:
        """Return 1: the result is measured."""
        del plan
        return 1


class DensePrefill(StageSplitter):
    """Prefill loses nothing: the whole cost of pruning is taken out of decode."""

    name = "dense-prefill"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure the result, and nothing else."""
        del costs, rng
        final = Plan(decode=plan.decode)
        yield from measure(final)
        return final

    def steps(self, plan: Plan) -> int | None:
        """Return 1: the result is measured."""
        del plan
        return 1


class KeepSearchResult(StageSplitter):
    """Prefill loses what the searcher found for it: the default of searchers that find both stages, such as `joint`."""

    name = "keep-search-result"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure nothing."""
        del costs, rng
        yield from ()
        return plan
