"""How near the variants of a run are to the dense model, in words that several reports use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pdtrim_core.api import Metric

if TYPE_CHECKING:
    from pdtrim_core.api import Fidelity, RecoveryResult

APART = 2
"""Standard errors from which two variants are told apart."""


def verdict(fidelity: Fidelity, plus_minus: str = "+-") -> str:
    """Return what the figures mean for the pair, or for the model that replaced the dense one; empty where there are none."""
    found = fidelity.nearer
    if found is None or "staged" not in fidelity.variants:
        kl = fidelity.variants.get("unified", {}).get("kl")
        return "" if kl is None else f"unified is {with_error(kl, 3, plus_minus)} nats a token from dense"
    unclear = _unclear(found, "unified", plus_minus)
    if unclear:
        return unclear
    return f"staged is {_size(found, plus_minus)} {'nearer to' if found.value > 0 else 'farther from'} dense than unified"


def verdict_on_recovery(fidelity: Fidelity, plus_minus: str = "+-") -> str:
    """Return how much of the distance to the dense model recovery took away on held-out items; empty if unmeasured."""
    found = fidelity.recovered
    if found is None:
        return ""
    pair = next(variant for variant in ("unquantized", "unselected", "staged") if variant in (*fidelity.variants, "staged"))
    unclear = _unclear(found, "unrecovered", plus_minus, pair)
    if unclear:
        return unclear
    if found.value < 0:
        return f"recovery makes it worse here: {pair} is {_size(found, plus_minus)} farther from dense than unrecovered"
    before = fidelity.variants.get("unrecovered", {}).get("kl")
    share = "" if before is None or before.value <= 0 else f", {_percent(found.value / before.value)} of the distance to dense"
    return f"recovery takes {_size(found, plus_minus)} away{share}"


def verdict_on_formats(fidelity: Fidelity, plus_minus: str = "+-") -> str:
    """Return how much farther from the dense model number formats take the pair, on held-out items; empty if unmeasured."""
    found = fidelity.quantized
    if found is None:
        return ""
    pair = "unselected" if "unselected" in fidelity.variants else "staged"
    return _unclear(found, "unquantized", plus_minus, pair) or f"formats take the pair {_direction(found, plus_minus)}"


def verdict_on_selection(fidelity: Fidelity, plus_minus: str = "+-") -> str:
    """Return how much farther from the dense model it takes the pair to read less of prompts; empty if unmeasured."""
    found = fidelity.selected
    if found is None:
        return ""
    return _unclear(found, "unselected", plus_minus) or f"reading less of prompts takes the pair {_direction(found, plus_minus)}"


def _direction(found: Metric, plus_minus: str) -> str:
    return f"{_size(found, plus_minus)} {'farther from' if found.value > 0 else 'nearer to'} dense"


def _unclear(found: Metric, other: str, plus_minus: str, pair: str = "staged") -> str:
    """Return why the pair and another variant are not told apart; empty where they are."""
    if found.error is None:
        return f"one prompt is too few to tell {pair} and {other} apart"
    if not found.value and not found.error:
        return f"{pair} and {other} are equally near to dense: here they give the same"
    if abs(found.value) < APART * found.error:
        size = _size(found, plus_minus)
        return f"{pair} and {other} are not told apart: they differ by {size}, less than {APART} standard errors"
    return ""


def _size(found: Metric, plus_minus: str) -> str:
    return f"{with_error(Metric(abs(found.value), found.error), 3, plus_minus)} nats a token"


def kept_of(results: Sequence[RecoveryResult]) -> list[str]:
    """Return the names of the recoveries that were kept."""
    return [result.name for result in results if result.kept]


def taken_away(result: RecoveryResult) -> str:
    """Return the share of the distance to the dense model that a recovery took away, or that it was left out."""
    return "left out" if not result.kept or result.taken_away is None else _percent(result.taken_away)


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def with_error(metric: Metric, digits: int, plus_minus: str = "+-", *, scale: float = 1) -> str:
    """Return a figure times a scale, with its standard error where it has one."""
    error = "" if metric.error is None else f" {plus_minus} {scale * metric.error:.{digits}f}"
    return f"{scale * metric.value:.{digits}f}{error}"


def flips(metrics: Mapping[str, Metric]) -> tuple[float, float, float] | None:
    """Return the percentages of items that went from right to wrong and from wrong to right, and McNemar's p.

    None for texts, of which nothing is right or wrong.
    """
    names = ("right_to_wrong", "wrong_to_right", "flips_p")
    if any(name not in metrics for name in names):
        return None
    lost, won, chance = (metrics[name].value for name in names)
    return 100 * lost, 100 * won, chance
