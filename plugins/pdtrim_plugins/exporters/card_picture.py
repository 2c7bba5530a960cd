"""The picture of a model card: how far the variants of a run are from the dense model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdtrim_core.api import Metric, Outcome

PICTURE = "fidelity.png"
COLOURS = {"staged": "#1f57c3", "unified": "#b5520a"}
OTHERS = "#69717f"


def has_picture(outcome: Outcome) -> bool:
    """Tell whether there is anything to draw."""
    return bool(_divergences(outcome))


def write_picture(outcome: Outcome, file: Path) -> None:
    """Draw the KL divergence of each variant from the dense model, with its standard error."""
    from matplotlib.figure import Figure  # noqa: PLC0415 - slow to import

    found = _divergences(outcome)
    figure = Figure(figsize=(7, 0.8 + 0.4 * len(found)), dpi=110, layout="constrained")
    axes = figure.subplots()
    names, metrics = list(found), list(found.values())
    axes.barh(
        names,
        [metric.value for metric in metrics],
        xerr=[metric.error or 0.0 for metric in metrics],
        height=0.6,
        color=[COLOURS.get(name, OTHERS) for name in names],
        ecolor="#14181f",
    )
    axes.invert_yaxis()
    axes.set_xlabel("KL divergence from the dense model, nats a token (lower is nearer)")
    axes.spines[["top", "right"]].set_visible(False)
    # Without the version that drew it, which would make another file of the same numbers.
    figure.savefig(file, metadata={"Software": None})


def _divergences(outcome: Outcome) -> dict[str, Metric]:
    found = outcome.fidelity.variants if outcome.fidelity is not None else {}
    return {variant: metrics["kl"] for variant, metrics in found.items() if variant != "dense" and "kl" in metrics}
