"""Splitters: which of decode's elements prefill loses too (PDTrim, section 3.3 and appendix K)."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from random import Random
from typing import Literal

from pydantic import Field

from pdtrim_core import Answer, Ask, Element, Note, Plan, Points, SearchSpace, StageSplitter, hookimpl


class Gain(StageSplitter):
    """Gives an element back to prefill where that brings at least a threshold."""

    name = "gain"
    cites = "PDTrim, Sec. 3.3 (arXiv:2509.04467)"

    threshold: float = Field(3.0, ge=0, description="gain from which an element stays in prefill (the paper: 3)")
    unit: Literal["points", "relative"] = Field("points", description="points, or percent of the unified plan's value")

    def split(self, plan: Plan, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, Plan]:
        """Test each element alone, then measure all spared ones together.

        Gains of single elements need not add up: should the result be worse than its start, elements are given back
        one after the other instead, the best first, and the best of the three plans is taken.
        """
        del space, rng
        start = Plan.unified(plan.decode)
        before: Points = yield start
        needed = self.threshold if self.unit == "points" else self.threshold / 100 * before
        elements = plan.decode.elements
        after: Sequence[Points] = yield [_spare(start, element) for element in elements]
        spared = [element for element, points in zip(elements, after, strict=True) if _gain(points, before) >= needed]
        coarse = max((points.error_of_gain_over(before) for points in after), default=0.0)
        if coarse > needed:
            yield Note(
                f"splitter gain: the threshold of {needed:.3g} points is below the standard error of a gain ({coarse:.1f} "
                "points): use more calibration samples, or a smoother objective such as margin"
            )
        final = _spare(start, *spared)
        reached: Points = yield final
        if reached >= before:
            return final
        trail, last = yield from self._one_by_one(start, before, needed)
        yield Note(
            f"splitter gain: the elements that gain alone lose together ({before:.1f} to {reached:.1f} points); giving them "
            f"back one after the other reached {last:.1f}"
        )
        return max(((start, before), (trail, last), (final, reached)), key=lambda pair: pair[1])[0]

    def _one_by_one(self, start: Plan, before: Points, needed: float) -> Generator[Ask, Answer, tuple[Plan, Points]]:
        """Give back the best element, measure again on top of it, until none brings the threshold."""
        current, value = start, before
        while len(current.prefill):
            trials = [_spare(current, element) for element in current.prefill]
            points: Sequence[Points] = yield trials
            best = max(range(len(trials)), key=lambda i: (points[i], -i))
            if _gain(points[best], value) < needed:
                break
            current, value = trials[best], points[best]
        return current, value

    def steps(self, space: SearchSpace) -> int | None:
        """Return the start, one trial an element, and the final plan."""
        return space.count + 2


class Unified(StageSplitter):
    """Prefill loses all that decode loses: one model for both stages."""

    name = "unified"

    def split(self, plan: Plan, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, Plan]:
        """Measure nothing."""
        del space, rng
        yield from ()
        return Plan.unified(plan.decode)


class DensePrefill(StageSplitter):
    """Prefill loses nothing: the whole cost of pruning is taken out of decode."""

    name = "dense-prefill"

    def split(self, plan: Plan, space: SearchSpace, rng: Random) -> Generator[Ask, Answer, Plan]:
        """Measure nothing."""
        del space, rng
        yield from ()
        return Plan(decode=plan.decode)


def _gain(after: Points, before: Points) -> float:
    """Return a gain to the digits that points have: 4.1 - 1.1 must reach a threshold of 3."""
    return round(after - before, 4)


def _spare(plan: Plan, *elements: Element) -> Plan:
    return Plan(prefill=plan.prefill.without(*elements), decode=plan.decode)


@hookimpl
def pdtrim_splitters() -> Iterable[type[StageSplitter]]:
    """Yield the splitters."""
    yield from (Gain, Unified, DensePrefill)
