"""What measuring a plan gave: readings, and the scores computed from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from pdtrim_core.plan.plan import Plan
from pdtrim_core.wording import shortened

T = TypeVar("T")


DIGITS = 4
"""Scores are rounded to so many digits before they are compared: the last digits of float32 decide nothing."""


@dataclass(frozen=True)
class Reading:
    """What one measurement gave.

    `mean` is in the objective's own unit, `items` has one value an item in the order of the items (None where measuring
    stopped before it), `slope` is the derivative of the score by the mean there. A reading that was cut short has
    `score` None and `ceiling`, the highest score that it could have reached.
    """

    score: float | None
    mean: float | None
    items: tuple[float | None, ...] = ()
    slope: float = 0.0
    ceiling: float = 100.0


@dataclass(frozen=True)
class Underway(Reading):
    """What is known of a plan that is being measured: kept now and then, so that little is lost should the run be killed."""


def reading_from(data: Mapping[str, Any]) -> Reading:
    """Return the reading that a journal's line has. Raises `ValueError` for what is none."""
    items = data.get("items")
    if not isinstance(items, list) or not all(value is None or _is_number(value) for value in items):
        raise ValueError("items must be a list of numbers")
    for key, value in data.items():
        if key not in READING_KEYS:
            raise ValueError(f"a reading has no '{shortened(key)}'")
        if key != "items" and not _is_number(value) and not (value is None and key in ("score", "mean")):
            raise ValueError(f"{key} must be a number")
    missing = {"score", "mean"} - data.keys()
    if missing:
        raise ValueError(f"there is no {min(missing)}")
    score = data["score"]
    if score is None and "ceiling" not in data:
        raise ValueError("a reading that was cut short needs a ceiling")
    if score is not None and not 0 <= score <= 100:
        raise ValueError(f"a score of {score:.6g}: scores go from 0 to 100")
    if score is not None and (data["mean"] is None or None in items):
        raise ValueError("a reading with a score needs a mean and the value of each item")
    return Reading(**{**data, "items": tuple(items)})


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


READING_KEYS = frozenset(field.name for field in fields(Reading))


class Score(float):
    """The score of a plan: a number that knows the reading behind it, so that two can be compared item by item."""

    reading: Reading

    def __new__(cls, reading: Reading) -> Self:
        """Make the number of a reading that was not cut short."""
        assert reading.score is not None
        score = super().__new__(cls, reading.score)
        score.reading = reading
        return score

    def error_of_gain_over(self, other: Score) -> float:
        """Return the standard error of this score less the other one, in points of the score, paired over items."""
        pairs = zip(self.reading.items, other.reading.items, strict=True)
        slope = (self.reading.slope + other.reading.slope) / 2
        return abs(slope) * standard_error([new - old for new, old in pairs if new is not None and old is not None])

    @property
    def error(self) -> float:
        """The standard error of the score, over items."""
        return abs(self.reading.slope) * standard_error([value for value in self.reading.items if value is not None])


def standard_error(values: Sequence[float]) -> float:
    """Return the standard error of a mean; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    return statistics.stdev(values) / math.sqrt(len(values))


@dataclass(frozen=True)
class Candidate:
    """A plan that was requested: its number, its reading, the best so far, and the seconds it took."""

    number: int
    plan: Plan
    reading: Reading
    best: float | None
    remembered: bool
    seconds: float
