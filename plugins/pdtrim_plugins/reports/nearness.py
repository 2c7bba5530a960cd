"""How near the variants of a run are to the dense model, in words that several reports use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdtrim_core.api import Fidelity, Metric

APART = 2
"""Standard errors from which two variants are told apart."""


def verdict(fidelity: Fidelity, plus_minus: str = "+-") -> str:
    """Return what the figures mean for the pair, or for the model that replaced the dense one; empty where there are none."""
    found = fidelity.nearer
    if found is None or "staged" not in fidelity.variants:
        kl = fidelity.variants.get("unified", {}).get("kl")
        return "" if kl is None else f"unified is {with_error(kl, 3, plus_minus)} nats a token from dense"
    if found.error is None:
        return "one prompt is too few to tell staged and unified apart"
    if not found.value and not found.error:
        return "staged and unified are equally near to dense: here they give the same"
    size = f"{abs(found.value):.3f} {plus_minus} {found.error:.3f} nats a token"
    if abs(found.value) < APART * found.error:
        return f"staged and unified are not told apart: they differ by {size}, less than {APART} standard errors"
    return f"staged is {size} {'nearer to' if found.value > 0 else 'farther from'} dense than unified"


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
