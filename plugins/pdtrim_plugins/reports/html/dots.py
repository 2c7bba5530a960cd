"""Pictures of numbers by name: dots with their standard errors, one name a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdtrim_core.api import Gain, MergeResult
from pdtrim_plugins.reports.html.svg import ACCENT, INK, LINE, QUIET, SMALL, SURFACE, TEXT, TINT, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import counted, cut, element, plain, signed, with_error

ROW = 26
MOST_ROWS = 30
"""A picture with more lines cannot be read; the table below it has all of them."""
BEFORE: Mapping[str, Any] = {"color": QUIET, "marker": "o", "markerfacecolor": SURFACE}
BETWEEN: Mapping[str, Any] = {"color": WARM, "marker": "s"}
AFTER: Mapping[str, Any] = {"color": ACCENT, "marker": "o"}
LOOKS = (BEFORE, BETWEEN, AFTER, {"color": INK, "marker": "^"}, {"color": INK, "marker": "v", "markerfacecolor": SURFACE})
"""How up to five series look. They differ in shape as well, for readers who cannot distinguish the colours."""
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "dense": BEFORE,
    "unified": BETWEEN,
    "unrecovered": {"color": ACCENT, "marker": "D", "markerfacecolor": SURFACE, "markersize": 5},
    "unquantized": {"color": ACCENT, "marker": "s", "markerfacecolor": SURFACE, "markersize": 5},
    "unselected": {"color": ACCENT, "marker": "^", "markerfacecolor": SURFACE, "markersize": 5},
    "staged": AFTER,
    "prefill": LOOKS[3],
    "decode": LOOKS[4],
}
"""How each variant looks in every picture, in the order in which they are told."""

KEPT, REMOVED = "kept in prefill", "removed from prefill"


@dataclass(frozen=True)
class Dot:
    """One value with its standard error, None where it has none."""

    value: float
    error: float | None = None


def dots(
    name: str,
    rows: Mapping[str, Mapping[str, Dot]],
    series: Mapping[str, Mapping[str, Any]],
    *,
    title: str,
    unit: str,
    digits: int = 1,
) -> Picture:
    """Return values by row and series: the dots of a row lie one below the other, bars are standard errors.

    `series` has the look of each of them; the description tells values with so many `digits` behind the point.
    """
    slim = 12
    height = max(ROW, slim * len(series) + 12)

    def draw(sheet: Sheet) -> None:
        axes = _lines(sheet, list(rows), height, legend=list(series), unit=unit)
        handles = []
        for number, (one, look) in enumerate(series.items()):
            shift = (number - (len(series) - 1) / 2) * slim / height
            there = [(row + shift, values[one]) for row, values in enumerate(rows.values()) if one in values]
            if there:
                handles.append(_points(axes, there, label=one, **look))
        sheet.legend(handles)

    clauses = [
        f"{row}: {', '.join(_told(one, values[one], digits) for one in series if one in values)}" for row, values in rows.items()
    ]
    return picture(name, draw, title=title, description=f"{'; '.join(clauses)}.")


def _told(name: str, dot: Dot, digits: int) -> str:
    return f"{name} {with_error(dot.value, dot.error, digits)}"


def gains(found: Sequence[Gain], threshold: float | None) -> Picture:
    """Return the gain from keeping each element in prefill, with the threshold from which it is kept."""
    shown = sorted(found, key=lambda gain: -gain.gain)[:MOST_ROWS]

    def draw(sheet: Sheet) -> None:
        axes = _lines(
            sheet,
            [element(gain.element) for gain in shown],
            22,
            legend=[KEPT, REMOVED, "threshold"],
            unit="gain in score",
        )
        handles = []
        for kept_in_prefill, label, look in ((True, KEPT, AFTER), (False, REMOVED, BEFORE)):
            there = [
                (row, Dot(gain.gain, gain.error)) for row, gain in enumerate(shown) if gain.kept_in_prefill == kept_in_prefill
            ]
            if there:
                handles.append(_points(axes, there, label=label, **look))
        axes.axvline(0, color=LINE, linewidth=1.2, zorder=0)
        if threshold is not None:
            handles.append(axes.axvline(threshold, color=WARM, linestyle=(0, (5, 3)), linewidth=1.3, label="threshold"))
        sheet.legend(handles)

    told = [f"{element(gain.element)} {signed(gain.gain)} ({'kept' if gain.kept_in_prefill else 'removed'})" for gain in shown]
    beside = "" if threshold is None else f" The threshold is {plain(threshold, 2)} points."
    return picture("gains", draw, title="Gain of each element", description=f"{'; '.join(told)}.{beside}")


def merges(results: Sequence[MergeResult]) -> Picture:
    """Return the error after each merge before and after training, next to that of a drop."""
    shown = sorted(results, key=lambda merge: merge.pair)[:MOST_ROWS]
    series = (
        ("before training", "untrained", {"color": QUIET, "marker": "o", "markerfacecolor": SURFACE}),
        ("after", "trained", {"color": ACCENT, "marker": "o"}),
        ("a drop instead", "drop", {"color": WARM, "marker": "|", "markersize": 12, "markeredgewidth": 2.2}),
    )

    def draw(sheet: Sheet) -> None:
        names = ["+".join(map(str, merge.pair)) for merge in shown]
        axes = _lines(sheet, names, ROW, legend=[one[0] for one in series], unit="mean squared error of the hidden states")
        for row, merge in enumerate(shown):
            axes.plot([merge.untrained, merge.trained], [row, row], color=TINT, linewidth=4, solid_capstyle="butt")
        handles = []
        for label, field, look in series:
            values = [getattr(merge, field) for merge in shown]
            style = {"markersize": 6.5, "linestyle": "none", **look}
            handles += axes.plot(values, range(len(shown)), label=label, **style)
        if min(min(m.untrained, m.trained, m.drop) for m in shown) > 0:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter("{x:g}")
        sheet.legend(handles)

    told = [f"{'+'.join(map(str, m.pair))} from {m.untrained:.3g} to {m.trained:.3g}, a drop {m.drop:.3g}" for m in shown]
    return picture("merges", draw, title="Merge losses", description=f"Mean squared errors of {'; '.join(told)}.")


def costs(shares: Mapping[str, float]) -> Picture:
    """Return what is left of each cost, in percent of the dense model's."""

    def draw(sheet: Sheet) -> None:
        axes = _lines(sheet, list(shares), ROW, legend=(), unit="percent of the dense model's")
        rows, thick = range(len(shares)), 15 * len(shares) / axes.bbox.height
        axes.barh(rows, [100] * len(shares), height=thick, color=TINT, linewidth=0)
        axes.barh(rows, [100 * share for share in shares.values()], height=thick, color=ACCENT, linewidth=0)
        for row, share in enumerate(shares.values()):
            inside = share > 0.25
            variant, colour = ("right", SURFACE) if inside else ("left", INK)
            place = 100 * share + (-2 if inside else 2)
            axes.text(place, row, f"{plain(100 * share)} %", va="center", ha=variant, color=colour, fontsize=SMALL)
        axes.set_xlim(0, max(100, *(100 * share for share in shares.values())))
        axes.grid(visible=False)

    told = ", ".join(f"{name} {plain(100 * share)} %" for name, share in shares.items())
    return picture("costs", draw, title="Costs that are left", description=f"Of the dense model's: {told}.")


def more_than_shown(count: int) -> str:
    """Return the sentence that a caption needs where a picture leaves lines out."""
    return f" The picture shows {MOST_ROWS} of {counted(count, 'line')}, the table all." if count > MOST_ROWS else ""


def _lines(sheet: Sheet, names: Sequence[str], height: float, *, legend: Sequence[str], unit: str) -> Any:
    """Return axes with one line for each name, which stands to its left, or above it in a narrow picture."""
    from matplotlib.transforms import ScaledTranslation, blended_transform_factory  # noqa: PLC0415 - listings must not load it

    above = sheet.is_narrow and max(map(len, names)) > 12
    most = 46 if above else 14 if sheet.is_narrow else 42
    labels = [cut(name, most) for name in names]
    height += 26 if above else 0
    left = 10 if above else 7 * max(map(len, labels)) + 14
    (axes,) = sheet.panels(height * len(names), left=left, top=sheet.legend_height(legend))
    axes.set(ylim=(len(names) - 0.5, -0.5), yticks=range(len(names)), xlabel=unit)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    if not above:
        axes.set_yticklabels(labels, fontsize=TEXT, color=INK)
        return axes
    axes.set_yticklabels([])
    lift = ScaledTranslation(-left / 72, 0, sheet.figure.dpi_scale_trans)
    place = blended_transform_factory(axes.transAxes, axes.transData) + lift
    for row, label in enumerate(labels):
        axes.axhline(row - 0.5, color=LINE, linewidth=0.8)
        axes.text(0, row - 0.5 + 9 / height, label, transform=place, va="center", ha="left", color=INK)
    return axes


def _points(axes: Any, there: Sequence[tuple[float, Dot]], *, label: str, **look: Any) -> Any:
    """Draw dots with bars of one standard error to either side."""
    rows, values = [row for row, _ in there], [dot for _, dot in there]
    for row, dot in there:
        if dot.error:
            axes.plot([dot.value - dot.error, dot.value + dot.error], [row, row], color=look["color"], linewidth=1.4)
    (score,) = axes.plot([dot.value for dot in values], rows, label=label, **{"markersize": 6, "linestyle": "none", **look})
    return score
