"""Splitters that decide without measuring: prefill loses all that decode loses, nothing, or what the searcher found."""

from __future__ import annotations

from random import Random

from pdtrim_core.api import CostModel, Plan, Requests, StageSplitter


class Unified(StageSplitter):
    """Prefill loses all that decode loses: one model for both stages."""

    name = "unified"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure nothing."""
        del costs, rng
        yield from ()
        return Plan.unified(plan.decode)


class DensePrefill(StageSplitter):
    """Prefill loses nothing: the whole cost of pruning is taken out of decode."""

    name = "dense-prefill"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure nothing."""
        del costs, rng
        yield from ()
        return Plan(decode=plan.decode)


class KeepSearchResult(StageSplitter):
    """Prefill loses what the searcher found for it: the default of searchers that find both stages, such as `joint`."""

    name = "keep-search-result"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure nothing."""
        del costs, rng
        yield from ()
        return plan
