"""When measuring a plan may stop before all items are measured: for certain, or as surely as a search wants."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from pdtrim_core.data.readings import Reading
from pdtrim_core.plan.plan import Plan

FEWEST = 8
"""Values from which on their spread is taken for known."""


@dataclass(frozen=True)
class Stop:
    """What plans are measured for, and so when one of them may be given up.

    Each has to reach the score `floor`, which was made from the reading `than`; or only the best `keep` of them are wanted.
    Without any of these all are measured whole. `ahead` are plans that are likely to be measured next; nobody waits for them.
    """

    floor: float | None = None
    than: Reading | None = None
    keep: int | None = None
    ahead: Iterable[Plan] = field(default=(), compare=False)


WHOLE = Stop()


def interval(values: Sequence[float], weights: Sequence[float], error: float, *, planned: int) -> tuple[float, float]:
    """Return bounds of the weighted mean that a growing sample comes to, which may be asked for again after each new value.

    With probability 1 - `error` the mean is within all the bounds that are ever returned, so that a decision may be made as soon
    as they allow it: an asymptotic confidence sequence (Waudby-Smith et al., "Time-uniform central limit theory and asymptotic
    confidence sequences", arXiv:2103.06476, Eq. 7), narrowest for a third of the `planned` values. The values must come in random
    order. Of fewer than `FEWEST` values, and of such as are all alike, nothing is said: their spread is not known.
    """
    count = len(values)
    if count < FEWEST:
        return -math.inf, math.inf
    total = math.fsum(weights)
    mean = math.fsum(w * v for w, v in zip(weights, values, strict=True)) / total
    # A weighted mean is a ratio of two means; these are what it is the mean of, to first order.
    residuals = [w * (v - mean) * count / total for w, v in zip(weights, values, strict=True)]
    deviation = math.sqrt(math.fsum(r * r for r in residuals) / (count - 1))
    level = -2 * math.log(error)
    narrow = (level + math.log(level + 1)) / max(FEWEST, planned / 3)
    grown = count * narrow + 1
    if deviation == 0:
        return -math.inf, math.inf
    radius = deviation * math.sqrt(grown * math.log(grown / error**2)) / (count * math.sqrt(narrow))
    return mean - radius, mean + radius
