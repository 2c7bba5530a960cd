"""Pictures by depth: the similarity scores of blocks and pairs, and the norms of the hidden states."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Sequence
from typing import Any

from pdtrim_plugins.reports.html.svg import ACCENT, QUIET, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import joined, ranges


def similarity(
    blocks: Sequence[float],
    pairs: Sequence[float],
    *,
    removed: Collection[int],
    merged: Collection[tuple[int, ...]],
    threshold: float | None,
) -> Picture:
    """Return the scores of blocks and of pairs by depth, with the threshold d_T, and both as a heat map below."""
    changed = {*removed, *(block for pair in merged for block in pair)}

    def draw(sheet: Sheet) -> None:
        above, below = sheet.panels(
            180, 44 if pairs else 22, top=sheet.legend_height(["block", "pair", "removed from decode", "d_T"]), gap=8
        )
        scale = _Scale((*blocks, *pairs))
        handles = [_dots(above, range(len(blocks)), blocks, scale, color=ACCENT, marker="o", label="block")]
        if pairs:
            places = [first + 0.5 for first in range(len(pairs))]
            handles.append(_dots(above, places, pairs, scale, color=QUIET, marker="D", label="pair"))
        handles += _rings(above, [scale.height(score) for score in blocks], changed)
        if threshold is not None and scale.reaches(threshold):
            handles.append(above.axhline(scale.place(threshold), color=WARM, linestyle=(0, (5, 3)), linewidth=1.2, label="d_T"))
        above.set(ylabel="score", xlim=(-0.8, len(blocks) - 0.2))
        scale.label(above)
        sheet.legend(handles)
        _heat(below, [[scale.height(score) for score in scores] for scores in (blocks, pairs) if scores], merged)
        below.set_xlabel("block")

    return picture("similarity", draw, title="Similarity by depth", description=_in_words(blocks, pairs, threshold))


def norms(values: Sequence[float]) -> Picture:
    """Return the mean norm of the hidden states before each block, and after the last one."""

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(150, top=8)
        axes.plot(range(len(values)), values, color=ACCENT, marker="o", markersize=3.5)
        axes.set(xlabel="block", ylabel="norm before it", xlim=(-0.8, len(values) - 0.2), ylim=(0, max(values) * 1.08))
        _whole_numbers(axes)

    last = len(values) - 1
    told = f"From {values[0]:.1f} before block 0 to {values[last]:.1f} after block {last - 1}; "
    highest = max(range(len(values)), key=values.__getitem__)
    return picture(
        "norms", draw, title="Norms by depth", description=f"{told}the largest, {values[highest]:.1f}, at position {highest}."
    )


NEAR_ONE = 0.004
"""Added to the distance from 1, so that a cosine of 1 has a place on a logarithmic scale."""


class _Scale:
    """The scale of scores: for cosines the logarithm of the distance from 1, as most are close to 1; else the scores themselves.

    Outliers that would flatten all other scores are drawn at the edge.
    """

    def __init__(self, values: Sequence[float]) -> None:
        self.is_cosine = all(-1 <= value <= 1 for value in values) and max(values) > 0.5
        quarters = statistics.quantiles(values, n=4) if len(values) > 3 else [min(values), 0, max(values)]
        far = 8 * (quarters[2] - quarters[0])
        self.low = min(values) if self.is_cosine else max(min(values), quarters[0] - far)
        self.high = max(values) if self.is_cosine else min(max(values), quarters[2] + far)

    def height(self, value: float) -> float:
        """Return the height of a score in the picture, from 0 for the lowest to 1 for the highest."""
        return self.place(min(max(value, self.low), self.high))

    def place(self, value: float) -> float:
        """Return the height of any value, which may lie outside the range of the scores."""
        low, high, here = (self._raw(one) for one in (self.low, self.high, value))
        return (here - low) / (high - low) if high > low else 1.0

    def off(self, value: float) -> bool:
        """Tell whether a score is drawn at the edge because it lies off the scale."""
        return not self.low <= value <= self.high

    def reaches(self, value: float) -> bool:
        """Tell whether a threshold can be shown among the scores."""
        return -0.08 <= self.place(value) <= 1.1

    def label(self, axes: Any) -> None:
        """Write round scores beside an axis of heights."""
        if self.is_cosine:
            ticks = [tick for tick in (0.99, 0.98, 0.97, 0.95, 0.9, 0.8, 0.5, 0.0, -0.5) if self.reaches(tick)]
        else:
            from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - listings must not load it

            ticks = [tick for tick in MaxNLocator(5).tick_values(self.low, self.high) if self.reaches(tick)]
        ticks = self._spaced(ticks)
        axes.set(ylim=(-0.08, 1.1), yticks=[self.place(tick) for tick in ticks], yticklabels=[f"{tick:g}" for tick in ticks])

    def _spaced(self, ticks: Sequence[float]) -> list[float]:
        """Return the ticks whose labels have room; of two that are too close, the lower one."""
        kept: list[float] = []
        for tick in sorted(ticks):
            if not kept or self.place(tick) - self.place(kept[-1]) >= 0.1:
                kept.append(tick)
        return kept

    def _raw(self, value: float) -> float:
        return -math.log(max(1 + NEAR_ONE - value, NEAR_ONE / 10)) if self.is_cosine else value


def _dots(axes: Any, places: Sequence[float], values: Sequence[float], scale: _Scale, **look: Any) -> Any:
    """Draw scores as dots on a thin line; those off the scale as arrows at its edge."""
    heights = [scale.height(value) for value in values]
    (line,) = axes.plot(places, heights, linewidth=1, markersize=4.5 if look["marker"] == "o" else 3.2, **look)
    for place, value in zip(places, values, strict=True):
        if scale.off(value):
            below = value < scale.low
            axes.plot([place], [-0.04 if below else 1.05], marker=7 if below else 6, color=look["color"], markersize=6)
    return line


def _rings(axes: Any, heights: Sequence[float], changed: Collection[int]) -> list[Any]:
    """Draw a ring around the blocks that are removed from decode."""
    if not changed:
        return []
    places = sorted(changed)
    look = {"markersize": 9, "markerfacecolor": "none", "markeredgecolor": WARM, "markeredgewidth": 1.6}
    return list(axes.plot(places, [heights[place] for place in places], "o", label="removed from decode", **look))


def _heat(axes: Any, rows: Sequence[Sequence[float]], merged: Collection[tuple[int, ...]]) -> None:
    """Draw a row of cells for the blocks and one, between them, for the pairs: the stronger the colour, the higher the score."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - listings must not load it

    for row, heights in enumerate(rows):
        for place, height in enumerate(heights):
            corner = (place + row / 2 - 0.44, row + 0.06)
            axes.add_patch(Rectangle(corner, 0.88, 0.88, facecolor=ACCENT, alpha=0.06 + 0.94 * height, linewidth=0))
            if row == 1 and any(place in run and place + 1 in run for run in merged):
                axes.add_patch(Rectangle(corner, 0.88, 0.88, facecolor="none", edgecolor=WARM, linewidth=1.8))
    axes.set(ylim=(len(rows), 0), yticks=[row + 0.5 for row in range(len(rows))], yticklabels=["blocks", "pairs"][: len(rows)])
    axes.grid(visible=False)
    _whole_numbers(axes)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - listings must not load it

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _in_words(blocks: Sequence[float], pairs: Sequence[float], threshold: float | None) -> str:
    order = sorted(range(len(blocks)), key=lambda block: (-blocks[block], block))
    told = [f"The highest scores: blocks {joined([str(block) for block in order[:5]])}; the lowest: block {order[-1]}."]
    if pairs and threshold is not None:
        above = [first for first, score in enumerate(pairs) if score >= threshold]
        which = f"those that begin at block {ranges(above)}" if above else "none"
        told.append(f"Pairs that reach d_T = {threshold:.4g}: {which}.")
    return " ".join(told)
