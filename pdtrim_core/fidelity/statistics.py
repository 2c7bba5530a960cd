"""Figures with their standard errors: ratios over prompts, and changes of answers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdtrim_core.results.task_results import Metric


def ratio(parts: Sequence[float], wholes: Sequence[float], *, higher_is_better: bool) -> Metric:
    """Return the sum of parts divided by the sum of wholes, one of each a prompt, such as a divergence a token.

    The standard error is over prompts, whose tokens belong together: that of a ratio of means, to first order (Cochran, Sampling
    Techniques, 2.11). It is None for fewer than two prompts. Raises `ZeroDivisionError` where the wholes are nothing.
    """
    total = math.fsum(wholes)
    value = math.fsum(parts) / total
    return Metric(value, _error(parts, wholes, value), higher_is_better)


def _error(parts: Sequence[float], wholes: Sequence[float], value: float) -> float | None:
    count = len(parts)
    if count < 2:
        return None
    residuals = [part - value * whole for part, whole in zip(parts, wholes, strict=True)]
    return math.sqrt(count / (count - 1) * math.fsum(residual**2 for residual in residuals)) / math.fsum(wholes)


def mcnemar(worse: int, better: int) -> float:
    """Return how likely at least so uneven a change of answers is by chance, McNemar's exact p, two-sided (1947).

    `worse` answers went from right to wrong, `better` from wrong to right; without a change it is 1.
    """
    changed, fewer = worse + better, min(worse, better)
    fewer_still = sum(math.comb(changed, count) for count in range(fewer + 1))
    return min(1.0, float(2 * fewer_still / 2**changed))


def accepted(overlaps: Sequence[float], length: int) -> list[float]:
    """Return how many tokens of a draft of some length the dense model is expected to accept, for each place to begin one.

    `overlaps` are the chances that each token along an answer is accepted (Leviathan et al., 2023, Eq. 1); a draft ends at the
    first token that is not. There is no figure for places with fewer tokens behind them than a draft has.
    """
    found = []
    for start in range(len(overlaps) - length + 1):
        chances, chance = [], 1.0
        for overlap in overlaps[start : start + length]:
            chance *= overlap
            chances.append(chance)
        found.append(math.fsum(chances))
    return found
