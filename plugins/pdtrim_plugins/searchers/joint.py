"""A search over what both stages do at each block, under a ceiling on what prefill costs: beyond the paper."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from random import Random
from typing import ClassVar, TypeVar

from pydantic import Field

from pdtrim_core.api import (
    Element,
    KvOnly,
    Merge,
    PdtrimError,
    Plan,
    Removal,
    Requests,
    Searcher,
    SearchSpace,
    StageFacts,
    measure,
)
from pdtrim_plugins.prefill_ceiling import below_all_kv, ceiling_option
from pdtrim_plugins.searchers.annealing import Cooling, if_refused

T = TypeVar("T")

Losses = tuple[Element, ...]
"""What prefill may lose at one place, the least first. A place is an element of decode, or a block that decode runs."""


class Joint(Searcher):
    """Simulated annealing over both stages together: what decode loses, and what prefill skips.

    A departure from the paper, which searches one removal for both stages and then gives some of it back to prefill.
    Prefill uses all that the ceiling allows. It skips the deepest blocks first, keeping their K/V, then what decode has lost
    anyway.
    """

    name = "joint"
    staged: ClassVar[bool] = True

    prefill_at_most: float = ceiling_option(1.0)
    deep: float = Field(0.25, ge=0, le=1, description="share of the blocks, the deepest ones, that prefill skips first")
    shifts: float = Field(0.5, ge=0, le=1, description="chance that a step changes prefill alone, where it must lose something")
    t0: float = Field(10.0, gt=0, description="initial temperature, in percent of the start's points")
    alpha: float = Field(0.93, gt=0, lt=1, description="factor by which the temperature falls each step")
    t_min: float = Field(0.5, gt=0, description="temperature at which the search stops, in percent of the start's points")

    @property
    def prefill_ceiling(self) -> float:
        """The ceiling that the options give."""
        return self.prefill_at_most

    def problems(self, facts: StageFacts) -> list[str]:
        """Return why no prefill is under the ceiling."""
        if facts.least_prefill <= self.prefill_at_most:
            return []
        return [below_all_kv("searcher joint", self.prefill_at_most, facts.least_prefill, bound=True)]

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Walk from the first removal.

        Temperatures are relative, since objectives differ in how many points they give to the same plan. Raises `PdtrimError`
        where the ceiling is out of reach.
        """
        start, *other = self._starts(space)
        before = yield from measure(start)
        current, value = start, before
        for plan in other:
            score = yield from measure(plan)
            if score > value:
                current, value = plan, score
        for temperature in self._cooling.temperatures():
            neighbour = self._neighbour(current, space, rng)
            in_points = temperature / 100 * before
            floor = value + in_points * math.log(1 - rng.random())
            later = if_refused(partial(self._neighbour, current, space), rng)
            reached = yield from measure(neighbour, at_least=floor, than=value, temperature=in_points, otherwise=later)
            if reached is not None:
                current, value = neighbour, reached

    def steps(self, space: SearchSpace) -> int | None:
        """Return the starts and one candidate a step."""
        del space
        return 2 + self._cooling.step_count()

    @property
    def _cooling(self) -> Cooling:
        return Cooling(self.t0, self.alpha, self.t_min)

    def _starts(self, space: SearchSpace) -> list[Plan]:
        """Return the first removal under a prefill that keeps what it can, then under one that loses it too, if they differ."""
        both = (self._fit(plan, space) for plan in (Plan(decode=space.first), Plan.unified(space.first)))
        starts = [plan for plan in both if plan is not None]
        if not starts:
            kv = Plan(prefill=Removal(place[-1] for place in _places(space.first, space.block_count)), decode=space.first)
            raise PdtrimError(below_all_kv("searcher joint", self.prefill_at_most, space.cost(kv, "prefill")))
        return list(dict.fromkeys(starts))

    def _neighbour(self, plan: Plan, space: SearchSpace, rng: Random) -> Plan:
        """Return a plan that differs in one element of decode or in what prefill skips; the same where none fits."""
        shifts = len(plan.prefill) and (rng.random() < self.shifts or not len(plan.decode))
        other = self._shift(plan, space, rng) if shifts else self._swap(plan, space, rng)
        return plan if other is None else other

    def _swap(self, plan: Plan, space: SearchSpace, rng: Random) -> Plan | None:
        """Swap an element of decode for another; if prefill lost the one, it loses the other.

        The safer an element is said to be, the more often it enters. Drawn by the scores themselves, which lie near to each
        other, any block would enter about as often.
        """
        outside = [element for _, element in sorted(zip(space.weights, space.elements, strict=True), key=_safest)]
        outside = [element for element in outside if element not in plan.decode]
        if not outside or not len(plan.decode):
            return None
        entering = _early(outside, rng)
        decode = plan.decode.without(rng.choice(plan.decode.elements)).with_(entering)
        left, entered = _blocks(plan.decode, decode), _blocks(decode, plan.decode)
        passed = {block for block, state in enumerate(plan.states("prefill", space.block_count)) if state != "run"}
        passed = passed - left | (entered if left <= passed else passed & entered)
        lost = (place[0] for place in _places(decode, space.block_count) if not passed.isdisjoint(place[0].blocks))
        return self._fit(Plan(prefill=Removal(lost), decode=decode), space)

    def _shift(self, plan: Plan, space: SearchSpace, rng: Random) -> Plan | None:
        """Let prefill lose less at one place, and more at others until it fits: those it would skip first the more often."""
        places = self._order(plan, space)
        kept_in_prefill = rng.choice([place for place in places if _moved(plan, place, -1)])
        shifted = _moved(plan, kept_in_prefill, -1)
        while shifted is not None and space.cost(shifted, "prefill") > self.prefill_at_most:
            less = [moved for place in places if place != kept_in_prefill and (moved := _moved(shifted, place, 1))]
            shifted = _early(less, rng) if less else None
        return None if shifted is None else self._fit(shifted, space)

    def _fit(self, plan: Plan, space: SearchSpace) -> Plan | None:
        """Let prefill lose more in order until it fits; then less where that fits, in the opposite order."""
        order = self._order(plan, space)
        while space.cost(plan, "prefill") > self.prefill_at_most:
            less = next((moved for place in order if (moved := _moved(plan, place, 1))), None)
            if less is None:
                return None
            plan = less
        for place in reversed(order):
            while (more := _moved(plan, place, -1)) and space.cost(more, "prefill") <= self.prefill_at_most:
                plan = more
        return plan

    def _order(self, plan: Plan, space: SearchSpace) -> list[Losses]:
        """Return the places in the order in which prefill skips them.

        The deepest blocks come first: what is skipped there touches no K/V but the deepest ones. Then what decode has lost,
        which costs less than to skip what it runs. In each group the deepest place is the first.
        """
        shallow = round((1 - self.deep) * space.block_count)

        def rank(place: Losses) -> tuple[int, int]:
            block = place[0].blocks[0]
            group = 0 if block >= shallow else 1 if place[0] in plan.decode else 2
            return group, -block

        return sorted(_places(plan.decode, space.block_count), key=rank)


def _early(choices: Sequence[T], rng: Random) -> T:
    """Return the first of some things more often than the second, by the weights 1, 1/2, 1/3 and so on."""
    return rng.choices(choices, [1 / number for number in range(1, len(choices) + 1)])[0]


def _safest(weighted: tuple[float, Element]) -> tuple[float, tuple[int, ...]]:
    weight, element = weighted
    return -weight, element.blocks


def _places(decode: Removal, block_count: int) -> list[Losses]:
    """Return the places, the shallowest first."""
    places: dict[int, Losses] = {block: (KvOnly(block),) for block in range(block_count)}
    for element in decode:
        for block in element.blocks:
            del places[block]
        first = element.blocks[0]
        places[first] = (element, KvOnly(first)) if isinstance(element, Merge) else (element,)
    return [places[block] for block in sorted(places)]


def _moved(plan: Plan, place: Losses, by: int) -> Plan | None:
    """Return the plan whose prefill loses the next more (`by` = 1) or the next less (-1) at a place; None at the end."""
    ladder = (None, *place)
    now = next((level for level, element in enumerate(ladder) if element in plan.prefill), 0)
    if not 0 <= now + by < len(ladder):
        return None
    before, after = ladder[now], ladder[now + by]
    prefill = plan.prefill if before is None else plan.prefill.without(before)
    return Plan(prefill=prefill if after is None else prefill.with_(after), decode=plan.decode)


def _blocks(one: Iterable[Element], other: Removal) -> set[int]:
    """Return the blocks of the elements that are in one removal and not in another."""
    return {block for element in one if element not in other for block in element.blocks}
