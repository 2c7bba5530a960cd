"""Figures of a needle test: which answers have what they must."""

from __future__ import annotations

from collections.abc import Sequence

from pdtrim_core.fidelity.inputs import Needle
from pdtrim_core.fidelity.statistics import mcnemar, ratio
from pdtrim_core.results.task_results import Metric


def retrieved(needles: Sequence[Needle], has: Sequence[bool], dense_has: Sequence[bool]) -> dict[str, Metric]:
    """Return the share of answers that have their needle, over all and by depth, and McNemar's p of the change against dense."""
    changes = list(zip(dense_has, has, strict=True))
    lost, won = changes.count((True, False)), changes.count((False, True))
    found = {"needle": _share(has), "needle_p": Metric(mcnemar(lost, won))}
    for depth in sorted({needle.depth for needle in needles}):
        found[f"needle_at_{depth}"] = _share([own for own, needle in zip(has, needles, strict=True) if needle.depth == depth])
    return found


def _share(has: Sequence[bool]) -> Metric:
    return ratio([float(own) for own in has], [1.0] * len(has), higher_is_better=True)
