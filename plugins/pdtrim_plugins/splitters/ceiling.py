"""Splitters that keep prefill's cost under a ceiling, told in FLOPs as a share of the dense model's prefill."""

from __future__ import annotations

import math
from random import Random

from pydantic import Field

from pdtrim_core.api import CostModel, KvOnly, PdtrimError, Plan, Requests, StageSplitter, measure
from pdtrim_plugins.splitters.gain import gain_over, keep_in_prefill


class Budget(StageSplitter):
    """Gives elements back to prefill by gain per cost, as long as prefill stays under a ceiling."""

    name = "budget"

    prefill_at_most: float = Field(0.85, gt=0, le=1, description="FLOPs of prefill, at most, as a share of the dense model's")

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Begin at prefill = decode, give back what brings most for its cost, and measure the rest again on top of it.

        Ends where no element that fits brings anything. The best plan measured is returned, the first one on ties: what brings
        most need not be what brings most for its cost. Raises `PdtrimError` where prefill = decode is over
        the ceiling.
        """
        del rng
        current = Plan.unified(plan.decode)
        self._check(costs.cost(current, "prefill"))
        value = yield from measure(current)
        best, highest = current, value
        while trials := self._trials(current, costs):
            scores = yield from measure(trials)
            for trial, reached in zip(trials, scores, strict=True):
                if reached > highest:
                    best, highest = trial, reached
            gains = [gain_over(value, reached) for reached in scores]
            if max(gains) <= 0:
                break
            rates = [_rate(gain, _added(costs, current, trial)) for gain, trial in zip(gains, trials, strict=True)]
            taken = max(range(len(trials)), key=lambda i: (rates[i], -i))
            current, value = trials[taken], scores[taken]
        return best

    def _trials(self, current: Plan, costs: CostModel) -> list[Plan]:
        trials = [keep_in_prefill(current, element) for element in current.prefill]
        return [trial for trial in trials if costs.cost(trial, "prefill") <= self.prefill_at_most]

    def _check(self, least: float) -> None:
        if least > self.prefill_at_most:
            raise PdtrimError(
                f"splitter budget: prefill_at_most = {self.prefill_at_most:g} is out of reach, since prefill = decode, the "
                f"cheapest prefill of this splitter, costs {_rounded_up(least)} of the dense one: raise prefill_at_most to "
                'that, remove more blocks, or use splitter = "pop", which can go lower'
            )

    def steps(self, plan: Plan) -> int | None:
        """Return the start and all rounds that there can be."""
        return 1 + len(plan.decode) * (len(plan.decode) + 1) // 2


class Pop(StageSplitter):
    """Keeps only the K/V of the deepest blocks in prefill, as many as a ceiling on its cost demands.

    On top of that prefill loses all that decode loses. POP prunes no decode (`blocks = 0`); its care for the first token is
    `first_token = "decode"` here, and a ceiling stands in place of its number of blocks.
    """

    name = "pop"
    cites = "POP (arXiv:2602.03295)"

    prefill_at_most: float = Field(0.85, gt=0, le=1, description="FLOPs of prefill, at most, as a share of the dense model's")

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Pass by one block of decode after the other, the deepest first; measure the result once.

        Raises `PdtrimError` where the ceiling is out of reach even with the K/V of all blocks alone.
        """
        del rng
        current = Plan.unified(plan.decode)
        for slot in reversed(current.slots(costs.block_count)):
            if costs.cost(current, "prefill") <= self.prefill_at_most:
                break
            there = current.prefill.at(slot.block)
            prefill = current.prefill.without(*there).with_(KvOnly(slot.block))
            current = Plan(prefill=prefill, decode=plan.decode)
        self._check(costs.cost(current, "prefill"))
        yield from measure(current)
        return current

    def _check(self, least: float) -> None:
        if least > self.prefill_at_most:
            raise PdtrimError(
                f"splitter pop: prefill_at_most = {self.prefill_at_most:g} is out of reach, since the K/V of all blocks that "
                f"decode runs cost {_rounded_up(least)} of the dense prefill (the head included): raise prefill_at_most to "
                "that, or remove more blocks"
            )

    def steps(self, plan: Plan) -> int | None:
        """Return 1: the result is measured."""
        del plan
        return 1


def _added(costs: CostModel, before: Plan, after: Plan) -> float:
    return costs.cost(after, "prefill") - costs.cost(before, "prefill")


def _rate(gain: float, cost: float) -> float:
    """Return the gain a cost; what costs nothing comes first if it gains, and never if it does not."""
    if gain <= 0:
        return -math.inf
    return gain / cost if cost > 0 else math.inf


def _rounded_up(cost: float) -> float:
    """Return a cost with four digits, such that a ceiling of it is met."""
    return math.ceil(cost * 10_000) / 10_000
