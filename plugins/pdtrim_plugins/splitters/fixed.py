"""Splitters that compare nothing: prefill loses all that decode loses, nothing, or what the searcher found."""

from __future__ import annotations

from abc import abstractmethod
from random import Random

from pdtrim_core.api import CostModel, Plan, Removal, Requests, StageSplitter, measure


class WithoutMeasuring(StageSplitter):
    """A splitter that knows what prefill keeps without measuring anything."""

    @abstractmethod
    def plan_for(self, decode: Removal, costs: CostModel) -> Plan:
        """Return the plan with the prefill that goes with a removal from decode."""

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure the result, and nothing else."""
        del rng
        final = self.plan_for(plan.decode, costs)
        yield from measure(final)
        return final

    def steps(self, plan: Plan) -> int | None:
        """Return 1: the result is measured."""
        del plan
        return 1


class Unified(WithoutMeasuring):
    """Prefill loses all that decode loses: one model for both stages."""

    name = "unified"

    def plan_for(self, decode: Removal, costs: CostModel) -> Plan:
        """Return the plan with the same removal in both stages."""
        del costs
        return Plan.unified(decode)


class DensePrefill(WithoutMeasuring):
    """Prefill loses nothing: the whole cost of pruning is taken out of decode."""

    name = "dense-prefill"

    def plan_for(self, decode: Removal, costs: CostModel) -> Plan:
        """Return the plan without a removal from prefill."""
        del costs
        return Plan(decode=decode)


class KeepSearchResult(StageSplitter):
    """Prefill loses what the searcher found for it: the default of searchers that find both stages, such as `joint`."""

    name = "keep-search-result"

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure nothing."""
        del costs, rng
        yield from ()
        return plan
