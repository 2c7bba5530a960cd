"""The paper's splitter: an element stays in prefill where that brings enough (PDTrim, section 3.3 and appendix K)."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Literal

from pydantic import Field

from pdtrim_core.api import CostModel, Element, Plan, Requests, Score, StageSplitter, measure, note


def keep_in_prefill(plan: Plan, *elements: Element) -> Plan:
    """Return the plan whose prefill keeps what these elements remove."""
    return Plan(prefill=plan.prefill.without(*elements), decode=plan.decode)


def gain_over(before: Score, after: Score) -> float:
    """Return a gain to the digits that scores have: 4.1 - 1.1 must reach a threshold of 3."""
    return round(after - before, 4)


class Gain(StageSplitter):
    """Gives an element back to prefill where that brings at least a threshold."""

    name = "gain"
    cites = "PDTrim, Sec. 3.3 (arXiv:2509.04467)"

    threshold: float = Field(3.0, ge=0, description="gain from which an element stays in prefill (the paper: 3)")
    unit: Literal["score", "relative", "errors"] = Field(
        "score",
        description="points of the score (0 to 100), percent of the unified plan's, or standard errors of the gain, paired over "
        "items",
    )
    mode: Literal["independent", "cumulative"] = Field(
        "independent",
        description="independent: each element is measured alone (the paper); cumulative: the best one is given back, and the "
        "others are measured again on top of it",
    )

    def split(self, plan: Plan, costs: CostModel, rng: Random) -> Requests[Plan]:
        """Test each element alone; then give back, in one go or one after the other, what brings the threshold."""
        del costs, rng
        start = Plan.unified(plan.decode)
        before = yield from measure(start)
        after = yield from measure([keep_in_prefill(start, element) for element in plan.decode])
        yield from self._remarks(start, before, after)
        if self.mode == "cumulative":
            final, _ = yield from self._one_by_one(start, before)
            return final
        return (yield from self._together(start, before, after))

    def _remarks(self, start: Plan, before: Score, after: Sequence[Score]) -> Requests[None]:
        """Say where the gains are too coarse for the threshold, or where all are too uncertain for it."""
        errors = [score.error_of_gain_over(before) for score in after]
        if self.unit != "errors":
            needed, coarse = self._in_points(before), max(errors, default=0.0)
            if coarse > needed:
                yield from note(
                    f"splitter gain: the threshold of {needed:.3g} points is below the standard error of a gain ({coarse:.1f} "
                    "points): use more calibration samples; the objective margin is smoother than accuracy"
                )
        elif after and not any(self._reaches(before, score, unified=before) for score in after):
            best = max(range(len(after)), key=lambda i: (after[i], -i))
            gain = gain_over(before, after[best])
            more = ": more calibration samples, or a smoother objective, would tell more" if gain > 0 else ""
            yield from note(
                f"splitter gain: no element gains {self.threshold:g} standard errors, so prefill loses what decode loses; the "
                f"largest gain is {gain:.3g} points, of element {start.decode.elements[best]}, with a standard error of "
                f"{errors[best]:.2g}{more}"
            )

    def _in_points(self, unified: Score) -> float:
        return self.threshold if self.unit == "score" else self.threshold / 100 * unified

    def _reaches(self, before: Score, after: Score, *, unified: Score) -> bool:
        """Tell whether a gain brings the threshold; one of nothing has no error, and is no gain of some errors."""
        gain = gain_over(before, after)
        if self.unit != "errors":
            return gain >= self._in_points(unified)
        return gain >= self.threshold * after.error_of_gain_over(before) and (gain > 0 or self.threshold == 0)

    def _together(self, start: Plan, before: Score, after: Sequence[Score]) -> Requests[Plan]:
        """Give back all elements that bring the threshold alone, and measure that too.

        Gains of single elements need not add up: should the result be worse than its start, elements are given back
        one after the other instead, the best first, and the best of the three plans is taken.
        """
        pairs = zip(start.decode, after, strict=True)
        final = keep_in_prefill(start, *(element for element, score in pairs if self._reaches(before, score, unified=before)))
        reached = yield from measure(final)
        if reached >= before:
            return final
        trail, last = yield from self._one_by_one(start, before)
        yield from note(
            f"splitter gain: the elements that gain alone lose together ({before:.1f} to {reached:.1f} points); giving them "
            f"back one after the other reached {last:.1f}"
        )
        return max(((start, before), (trail, last), (final, reached)), key=lambda pair: pair[1])[0]

    def _one_by_one(self, start: Plan, before: Score) -> Requests[tuple[Plan, Score]]:
        """Give back the best element that brings the threshold, measure again on top of it, until none does."""
        current, value = start, before
        while len(current.prefill):
            trials = [keep_in_prefill(current, element) for element in current.prefill]
            scores = yield from measure(trials)
            enough = [i for i, score in enumerate(scores) if self._reaches(value, score, unified=before)]
            if not enough:
                break
            best = max(enough, key=lambda i: (scores[i], -i))
            current, value = trials[best], scores[best]
        return current, value

    def steps(self, plan: Plan) -> int | None:
        """Return the start, one trial an element, and the final plan; or the start and all rounds that there can be."""
        elements = len(plan.decode)
        return 1 + elements * (elements + 1) // 2 if self.mode == "cumulative" else elements + 2
