"""Figures of a plan that answers on its own, beside the dense model's answers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from pdtrim_core.fidelity.statistics import ratio
from pdtrim_core.results.task_results import Metric

GRAM, TIMES = 4, 3
"""An answer loops where so many tokens in a row occur so often in it."""
Answers = Sequence[Sequence[int]]
"""One answer a prompt, as tokens; the token that ends it counts."""


def beside(dense: Answers, plan: Answers) -> dict[str, Metric]:
    """Return the figures of answers to the same prompts, by name.

    `identical` is the share of answers that are the dense ones. `until_difference` is the mean number of tokens until an answer
    leaves the dense one: tokens in common over answers with a difference, which does justice to answers that end before theirs;
    where none differs it is infinite, and left out. `length` is the length of all answers over that of the dense ones, `loops`
    the share of answers that repeat themselves.
    """
    together = [_together(one, other) for one, other in zip(dense, plan, strict=True)]
    differ = [float(list(one) != list(other)) for one, other in zip(dense, plan, strict=True)]
    lengths = [[float(len(answer)) for answer in answers] for answers in (plan, dense)]
    ones = [1.0] * len(plan)
    found = {"identical": ratio([1 - number for number in differ], ones, higher_is_better=True)}
    if any(differ):
        found["until_difference"] = ratio([float(count) for count in together], differ, higher_is_better=True)
    return {
        **found,
        "length": ratio(lengths[0], lengths[1], higher_is_better=True),
        "loops": ratio([float(loops(answer)) for answer in plan], ones, higher_is_better=False),
    }


def loops(answer: Sequence[int]) -> bool:
    """Tell whether an answer repeats itself."""
    grams = Counter(tuple(answer[start : start + GRAM]) for start in range(len(answer) - GRAM + 1))
    return max(grams.values(), default=0) >= TIMES


def _together(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many tokens two answers begin with in common."""
    pairs = zip(one, other, strict=False)
    return next((number for number, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
