"""A splitter: decides what of decode's removal prefill loses, too."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from pydantic import Field

from pdtrim_core.api import CostModel, Plan, Requests, StageSplitter, hookimpl, measure


class Example(StageSplitter):
    """Keeps in prefill the elements that gain most there, each measured on its own."""

    name = "example"

    at_most: int = Field(2, ge=0, description="elements that prefill keeps")
    least: float = Field(1.0, ge=0, description="gain of the score that an element must bring")

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure trial plans with the same decode, and return the final one."""
        del costs, rng
        start = yield from measure(plan)
        # Plans that do not depend on each other's scores go out together.
        trials = [Plan(prefill=plan.decode.without(element), decode=plan.decode) for element in plan.decode]
        scores = yield from measure(trials)
        gains = sorted(((score - start, e) for score, e in zip(scores, plan.decode, strict=True)), key=lambda pair: -pair[0])
        kept = [element for gain, element in gains[: self.at_most] if gain >= self.least]
        # What elements gain alone need not add up: the result is measured too.
        final = Plan(prefill=plan.decode.without(*kept), decode=plan.decode)
        return final if (yield from measure(final)) >= start else plan

    def steps(self, plan: Plan) -> int | None:
        """Return about how many measurements a split of this plan takes, for the progress bar."""
        return len(plan.decode) + 2


@hookimpl
def pdtrim_splitters() -> Iterable[type[StageSplitter]]:
    """Yield the splitters of this package."""
    yield Example
