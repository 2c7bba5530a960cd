"""The paper's splitter: an element stays in prefill where that brings enough (PDTrim, section 3.3 and appendix K)."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from random import Random
from typing import Literal

from pydantic import Field

from pdtrim_core.api import Note, Plan, Request, Result, Score, SearchSpace, StageSplitter
from pdtrim_plugins.splitters.sparing import gain_over, keep_in_prefill


class Gain(StageSplitter):
    """Gives an element back to prefill where that brings at least a threshold."""

    name = "gain"
    cites = "PDTrim, Sec. 3.3 (arXiv:2509.04467)"

    threshold: float = Field(3.0, ge=0, description="gain from which an element stays in prefill (the paper: 3)")
    unit: Literal["score", "relative"] = Field(
        "score", description="points of the score (0 to 100), or percent of the unified plan's"
    )
    mode: Literal["independent", "cumulative"] = Field(
        "independent",
        description="independent: each element is measured alone (the paper); cumulative: the best one is given back, and the "
        "others are measured again on top of it",
    )

    def split(self, plan: Plan, space: SearchSpace, rng: Random) -> Generator[Request, Result, Plan]:
        """Test each element alone; then give back, in one go or one after the other, what brings the threshold."""
        del space, rng
        start = Plan.unified(plan.decode)
        before: Score = yield start
        needed = self.threshold if self.unit == "score" else self.threshold / 100 * before
        after: Sequence[Score] = yield [keep_in_prefill(start, element) for element in plan.decode]
        coarse = max((score.error_of_gain_over(before) for score in after), default=0.0)
        if coarse > needed:
            yield Note(
                f"splitter gain: the threshold of {needed:.3g} points is below the standard error of a gain ({coarse:.1f} "
                "points): use more calibration samples; the objective margin is smoother than accuracy"
            )
        if self.mode == "cumulative":
            final, _ = yield from self._one_by_one(start, before, needed)
            return final
        return (yield from self._together(start, before, after, needed))

    def _together(self, start: Plan, before: Score, after: Sequence[Score], needed: float) -> Generator[Request, Result, Plan]:
        """Give back all elements that bring the threshold alone, and measure that too.

        Gains of single elements need not add up: should the result be worse than its start, elements are given back
        one after the other instead, the best first, and the best of the three plans is taken.
        """
        pairs = zip(start.decode, after, strict=True)
        final = keep_in_prefill(start, *(element for element, score in pairs if gain_over(before, score) >= needed))
        reached: Score = yield final
        if reached >= before:
            return final
        trail, last = yield from self._one_by_one(start, before, needed)
        yield Note(
            f"splitter gain: the elements that gain alone lose together ({before:.1f} to {reached:.1f} points); giving them "
            f"back one after the other reached {last:.1f}"
        )
        return max(((start, before), (trail, last), (final, reached)), key=lambda pair: pair[1])[0]

    def _one_by_one(self, start: Plan, before: Score, needed: float) -> Generator[Request, Result, tuple[Plan, Score]]:
        """Give back the best element, measure again on top of it, until none brings the threshold."""
        current, value = start, before
        while len(current.prefill):
            trials = [keep_in_prefill(current, element) for element in current.prefill]
            score: Sequence[Score] = yield [*trials]
            best = max(range(len(trials)), key=lambda i: (score[i], -i))
            if gain_over(value, score[best]) < needed:
                break
            current, value = trials[best], score[best]
        return current, value

    def steps(self, space: SearchSpace) -> int | None:
        """Return the start, one trial an element, and the final plan; or the start and all rounds that there can be."""
        if self.mode == "cumulative":
            return 1 + space.count * (space.count + 1) // 2
        return space.count + 2
