"""The last word between the best plans of a search: by their gains over its start, and how sure those are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pdtrim_core.data.readings import Score
from pdtrim_core.plan.plan import Plan


@dataclass(frozen=True)
class Choice:
    """The plan taken, with its gain over the start and the standard error of that, in points of the score.

    Where the start itself stays, `gain` is the greatest that a finalist had.
    """

    plan: Plan
    gain: float
    error: float
    stays: bool


def choose(scores: Mapping[Plan, Score], start: Plan, caution: float) -> Choice:
    """Return the finalist whose gain over the start, less `caution` standard errors of it (paired over items), is the greatest.

    The start stays where that is above 0 for none. `scores` has the start and at least one other plan.
    """
    before = scores[start]
    errors = {plan: score.error_of_gain_over(before) for plan, score in scores.items() if plan != start}
    sure = {plan: scores[plan] - before - caution * error for plan, error in errors.items()}
    best = max(sure, key=sure.__getitem__)
    if sure[best] > 0:
        return Choice(best, scores[best] - before, errors[best], stays=False)
    nearest = max(errors, key=lambda plan: scores[plan])
    return Choice(start, scores[nearest] - before, errors[nearest], stays=True)
