"""Splitters that keep prefill's cost under a ceiling, told in FLOPs as a share of the dense model's prefill."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Iterator
from random import Random
from typing import Literal

from pydantic import Field

from pdtrim_core.api import CostModel, Drop, KvOnly, PdtrimError, Plan, Removal, Requests, StageFacts, StageSplitter, measure
from pdtrim_plugins.prefill_ceiling import below_all_kv, ceiling_option, rounded_up
from pdtrim_plugins.splitters.fixed import WithoutMeasuring
from pdtrim_plugins.splitters.gain import gain_over, keep_in_prefill


class Budget(StageSplitter):
    """Gives elements back to prefill by gain per cost, as long as prefill stays under a ceiling."""

    name = "budget"

    prefill_at_most: float = ceiling_option(0.85)

    @property
    def prefill_ceiling(self) -> float:
        """The ceiling that the options give."""
        return self.prefill_at_most

    def problems(self, facts: StageFacts) -> list[str]:
        """Return why no prefill that loses what decode loses is under the ceiling."""
        least = facts.least_unified_prefill
        return [self._out_of_reach(least, "at least ")] if least > self.prefill_at_most else []

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Begin at prefill = decode, give back what brings most for its cost, and measure the rest again on top of it.

        Ends where no element that fits brings anything. The best plan measured is returned, the first one on ties: what brings
        most need not be what brings most for its cost. Raises `PdtrimError` where prefill = decode is over
        the ceiling.
        """
        del rng
        current = Plan.unified(plan.decode)
        least = costs.cost(current, "prefill")
        if least > self.prefill_at_most:
            raise PdtrimError(self._out_of_reach(least))
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

    def _out_of_reach(self, least: float, how: str = "") -> str:
        return (
            f"splitter budget: prefill_at_most = {self.prefill_at_most:g} is out of reach, since prefill = decode, the "
            f"cheapest prefill of this splitter, costs {how}{rounded_up(least)} of the dense one: raise prefill_at_most to "
            'that, remove more blocks, or use splitter = "pop", which can go lower'
        )

    def steps(self, plan: Plan) -> int | None:
        """Return the start and all rounds that there can be."""
        return 1 + len(plan.decode) * (len(plan.decode) + 1) // 2


class _PassesBy(StageSplitter):
    """Computes only K/V of some blocks in prefill, so that a ceiling is out of reach only below the K/V of all blocks."""

    prefill_at_most: float

    @property
    def prefill_ceiling(self) -> float:
        """The ceiling that the options give."""
        return self.prefill_at_most

    def problems(self, facts: StageFacts) -> list[str]:
        """Return why no prefill is under the ceiling."""
        if facts.least_prefill <= self.prefill_at_most:
            return []
        return [below_all_kv(f"splitter {self.name}", self.prefill_at_most, facts.least_prefill, bound=True)]

    def _fits(self, plan: Plan, costs: CostModel) -> bool:
        return costs.cost(plan, "prefill") <= self.prefill_at_most

    def _check(self, lowest: Plan, costs: CostModel) -> None:
        """Raise `PdtrimError` where even the plan with the longest tail is above the ceiling."""
        if not self._fits(lowest, costs):
            raise PdtrimError(below_all_kv(f"splitter {self.name}", self.prefill_at_most, costs.cost(lowest, "prefill")))


class _KvTail(_PassesBy, WithoutMeasuring):
    """Computes only K/V in prefill from some depth on, which is as low as a ceiling on prefill's cost demands."""

    def plan_for(self, decode: Removal, costs: CostModel) -> Plan:
        """Return the plan whose prefill skips one block after the other, the deepest first, until it is under the ceiling.

        Of a block that decode runs the K/V stay, of a merged block its own, of a shrunk one those of the heads that decode has;
        one that decode has lost goes from prefill too. Where the ceiling is out of reach, all blocks are skipped.
        """
        tail, above = _tail(decode, costs.block_count), self._above_the_tail(decode)
        plans = [_passing_by(tail[:length], above, decode) for length in range(len(tail) + 1)]
        return next((plan for plan in plans if self._fits(plan, costs)), plans[-1])

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure the result once. Raises `PdtrimError` where even the K/V of all blocks alone are above the ceiling."""
        self._check(self.plan_for(plan.decode, costs), costs)
        return (yield from super().split(plan, costs, rng))

    @abstractmethod
    def _above_the_tail(self, decode: Removal) -> Removal:
        """Return what prefill loses as long as it has no tail."""


class KvTail(_KvTail):
    """Computes only the K/V of the deepest blocks in prefill, as many as a ceiling on its cost demands; the rest is dense.

    It suits any removal from decode, other pruners' included: with `first_token = "decode"` nothing of the deep blocks but
    their K/V is read, and skipping them leaves the K/V in front of them as they are.
    """

    name = "kv-tail"
    cites = "POP (arXiv:2602.03295)"

    prefill_at_most: float = ceiling_option(0.8)
    rest: Literal["dense", "decode"] = Field(
        "dense", description="what prefill runs above these blocks: every block, or those that decode runs"
    )

    def _above_the_tail(self, decode: Removal) -> Removal:
        return Removal() if self.rest == "dense" else decode


class Pop(_KvTail):
    """Keeps only the K/V of the deepest blocks in prefill, as many as a ceiling on its cost demands.

    On top of that prefill loses all that decode loses: `kv-tail` with `rest = "decode"`. POP prunes no decode (`blocks = 0`);
    its care for the first token is `first_token = "decode"` here, and a ceiling stands in place of its number of blocks.
    """

    name = "pop"
    cites = "POP (arXiv:2602.03295)"

    prefill_at_most: float = ceiling_option(0.85)

    def _above_the_tail(self, decode: Removal) -> Removal:
        return decode


class MixedTail(_PassesBy):
    """Computes only the K/V of the deepest blocks in prefill, and above them loses some of what decode loses.

    A long tail spares prefill much, and what its deep blocks read is far from what they expect; elements that decode can do
    without cost prefill little, too, where they are deep. For each length of the tail, from none to what `kv-tail` would take,
    prefill loses the deepest elements of decode above it until it is under the ceiling; the plan of them that measures best is
    taken, the one with the shortest tail on ties.
    """

    name = "mixed-tail"
    cites = "ours; the tail is POP's (arXiv:2602.03295)"

    prefill_at_most: float = ceiling_option(0.8)

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Measure one plan for each length of the tail. Raises `PdtrimError` where even the K/V alone are above the ceiling."""
        del rng
        self._check(_passing_by(_tail(plan.decode, costs.block_count), Removal(), plan.decode), costs)
        trials = list(dict.fromkeys(self._trials(plan.decode, costs)))
        scores = yield from measure(trials)
        return trials[max(range(len(trials)), key=lambda i: (scores[i], -i))]

    def _trials(self, decode: Removal, costs: CostModel) -> Iterator[Plan]:
        """Yield the plans, the shortest tail first; a length with which nothing is under the ceiling has none."""
        tail = _tail(decode, costs.block_count)
        deepest_first = sorted(decode, key=lambda element: -element.blocks[0])
        for length in range(len(tail) + 1):
            trial = tail_alone = _passing_by(tail[:length], Removal(), decode)
            passed = {block for element in tail[:length] for block in element.blocks}
            above = iter([element for element in deepest_first if passed.isdisjoint(element.blocks)])
            while not self._fits(trial, costs) and (element := next(above, None)):
                trial = Plan(prefill=trial.prefill.with_(element), decode=decode)
            if self._fits(trial, costs):
                yield trial
                if trial is tail_alone:
                    return


def _passing_by(tail: Iterable[Drop | KvOnly], above: Removal, decode: Removal) -> Plan:
    """Return the plan whose prefill has this tail in place of what it had lost there."""
    prefill = above
    for element in tail:
        prefill = prefill.without(*prefill.at(element.blocks[0])).with_(element)
    return Plan(prefill=prefill, decode=decode)


def _tail(decode: Removal, block_count: int) -> list[Drop | KvOnly]:
    """Return what the tail of prefill can be made of, the deepest first: K/V where decode reads some, nothing elsewhere."""
    kept = [KvOnly(slot.block) for slot in Plan(decode=decode).slots(block_count)]
    lost = [Drop(block) for block in range(block_count) if "attention" in decode.lost_at(block)]
    return sorted([*kept, *lost], key=lambda element: -element.blocks[0])


def _added(costs: CostModel, before: Plan, after: Plan) -> float:
    return costs.cost(after, "prefill") - costs.cost(before, "prefill")


def _rate(gain: float, cost: float) -> float:
    """Return the gain a cost; what costs nothing comes first if it gains, and never if it does not."""
    if gain <= 0:
        return -math.inf
    return gain / cost if cost > 0 else math.inf
