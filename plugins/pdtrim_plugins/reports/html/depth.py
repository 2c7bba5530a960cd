"""Pictures by depth: how alike blocks and pairs are, and how long the states grow."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from typing import Any

from pdtrim_plugins.reports.html.svg import ACCENT, QUIET, SMALL, SOFT, SURFACE, WARM, Picture, Sheet, picture
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
    lost = {*removed, *(block for pair in merged for block in pair)}

    def draw(sheet: Sheet) -> None:
        above, below = sheet.panels(180, 44 if pairs else 22, left=46, top=8 + 18 * sheet.legend_rows(4), gap=8)
        low = _lowest_shown((*blocks, *pairs))
        handles = [_dots(above, range(len(blocks)), blocks, low, color=ACCENT, marker="o", label="block")]
        if pairs:
            places = [first + 0.5 for first in range(len(pairs))]
            handles.append(_dots(above, places, pairs, low, color=QUIET, marker="D", label="pair"))
        handles += _rings(above, blocks, low, lost)
        if _in_reach(threshold, (*blocks, *pairs)):
            assert threshold is not None
            handles.append(above.axhline(threshold, color=WARM, linestyle=(0, (5, 3)), linewidth=1.2, label="d_T"))
        above.set(ylabel="score", xlim=(-0.8, len(blocks) - 0.2))
        above.margins(y=0.08)
        sheet.legend(handles)
        _heat(below, blocks, pairs, low, merged)
        below.set_xlabel("block")

    return picture("similarity", draw, title="Similarity by depth", description=_in_words(blocks, pairs, threshold))


def norms(lengths: Sequence[float]) -> Picture:
    """Return the mean length of the stream in front of each block, and behind the last one."""

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(150, left=46, top=8)
        axes.plot(range(len(lengths)), lengths, color=ACCENT, marker="o", markersize=3.5)
        axes.set(xlabel="block", ylabel="norm in front of it", xlim=(-0.8, len(lengths) - 0.2), ylim=(0, max(lengths) * 1.08))
        _whole_numbers(axes)

    last = len(lengths) - 1
    told = f"From {lengths[0]:.1f} in front of block 0 to {lengths[last]:.1f} behind block {last - 1}; "
    highest = max(range(len(lengths)), key=lambda place: lengths[place])
    return picture(
        "norms", draw, title="Norms by depth", description=f"{told}the longest, {lengths[highest]:.1f}, at place {highest}."
    )


def _lowest_shown(values: Sequence[float]) -> float:
    """Return the value below which a score lies so far off that it would flatten all others."""
    quarters = statistics.quantiles(values, n=4) if len(values) > 3 else [min(values), 0, max(values)]
    return max(min(values), quarters[0] - 4 * (quarters[2] - quarters[0]))


def _dots(axes: Any, places: Sequence[float], values: Sequence[float], low: float, **look: Any) -> Any:
    """Draw scores as points on a thin line; those below `low` as arrows at the edge, with their values."""
    shown = [max(value, low) for value in values]
    (line,) = axes.plot(places, shown, linewidth=1, markersize=4.5 if look["marker"] == "o" else 3.2, **look)
    off = [(place, value) for place, value in zip(places, values, strict=True) if value < low]
    for place, value in off:
        axes.plot([place], [low], marker="v", color=look["color"], markersize=7)
        axes.annotate(
            f"{value:.2g}", (place, low), xytext=(7, -1), textcoords="offset points", va="center", color=SOFT, fontsize=SMALL,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": SURFACE, "edgecolor": "none"},
        )  # fmt: skip
    return line


def _rings(axes: Any, blocks: Sequence[float], low: float, lost: Collection[int]) -> list[Any]:
    """Draw a ring around the blocks that decode loses."""
    if not lost:
        return []
    places = sorted(lost)
    values = [max(blocks[place], low) for place in places]
    (rings,) = axes.plot(
        places, values, "o", markersize=9, markerfacecolor="none", markeredgecolor=WARM, markeredgewidth=1.6, label="lost by decode"
    )
    return [rings]


def _heat(axes: Any, blocks: Sequence[float], pairs: Sequence[float], low: float, merged: Collection[tuple[int, ...]]) -> None:
    """Draw a row of cells for the blocks and one, between them, for the pairs: the fuller, the higher the score."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - listings must not load it

    high = max((*blocks, *pairs))
    for row, (values, shift) in enumerate(((blocks, 0.0), (pairs, 0.5))):
        for place, value in enumerate(values):
            share = (max(value, low) - low) / (high - low) if high > low else 1.0
            chosen = row == 1 and (place, place + 1) in merged
            axes.add_patch(
                Rectangle(
                    (place + shift - 0.44, row + 0.06), 0.88, 0.88, facecolor=ACCENT, alpha=0.06 + 0.94 * share**1.5, linewidth=0
                )
            )
            if chosen:
                axes.add_patch(
                    Rectangle((place + shift - 0.44, row + 0.06), 0.88, 0.88, facecolor="none", edgecolor=WARM, linewidth=1.8)
                )
    axes.set(ylim=(2 if pairs else 1, 0), yticks=[0.5, 1.5][: 1 + bool(pairs)], yticklabels=["blocks", "pairs"][: 1 + bool(pairs)])
    axes.grid(visible=False)
    _whole_numbers(axes)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - listings must not load it

    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))


def _in_reach(threshold: float | None, values: Sequence[float]) -> bool:
    """Tell whether a threshold lies so near to the scores that showing it does not flatten them."""
    if threshold is None:
        return False
    room = (max(values) - _lowest_shown(values)) / 3
    return _lowest_shown(values) - room <= threshold <= max(values) + room


def _in_words(blocks: Sequence[float], pairs: Sequence[float], threshold: float | None) -> str:
    order = sorted(range(len(blocks)), key=lambda block: (-blocks[block], block))
    told = [f"The highest scores have blocks {joined([str(block) for block in order[:5]])}, the lowest has block {order[-1]}."]
    if pairs and threshold is not None:
        above = [first for first, score in enumerate(pairs) if score >= threshold]
        which = f"those that begin at block {ranges(above)}" if above else "none"
        told.append(f"Pairs that reach d_T = {threshold:.4g}: {which}.")
    return " ".join(told)
