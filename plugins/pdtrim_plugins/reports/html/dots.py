"""Pictures of numbers by name: points with their errors, one name a line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pdtrim_core import Gain, MergeResult
from pdtrim_plugins.reports.html.svg import ACCENT, INK, LINE, QUIET, SOFT, SURFACE, TINT, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import counted, cut, element, plain, signed, with_error

ROW = 26
MOST_ROWS = 30
"""A picture with more lines tells no more; the table below it has all."""
_LOOKS: tuple[Mapping[str, Any], ...] = (
    {"color": QUIET, "marker": "o", "markerfacecolor": SURFACE},
    {"color": WARM, "marker": "s"},
    {"color": ACCENT, "marker": "o"},
    {"color": INK, "marker": "^"},
    {"color": INK, "marker": "v", "markerfacecolor": SURFACE},
)


@dataclass(frozen=True)
class Dot:
    """One value with its standard error, None where it has none."""

    value: float
    error: float | None = None


def dots(
    name: str, rows: Mapping[str, Mapping[str, Dot]], series: Sequence[str], *, title: str, unit: str, narrow_rows: bool = False
) -> Picture:
    """Return values by row and series: the points of a row lie one below the other, bars are standard errors."""
    slim = 15 if narrow_rows else 12
    height = max(ROW, slim * len(series) + 10)

    def draw(sheet: Sheet) -> None:
        left, labels = _labels(sheet, list(rows))
        (axes,) = sheet.panels(height * len(rows), left=left, top=8 + 18 * sheet.legend_rows(len(series)))
        handles = []
        for number, one in enumerate(series):
            shift = (number - (len(series) - 1) / 2) * slim / height
            there = [(row + shift, values[one]) for row, values in enumerate(rows.values()) if one in values]
            if there:
                handles.append(_points(axes, there, label=one, **_LOOKS[number % len(_LOOKS)]))
        _by_name(axes, labels, unit)
        sheet.legend(handles)

    clauses = [f"{row}: {', '.join(_told(one, values[one]) for one in series if one in values)}" for row, values in rows.items()]
    return picture(name, draw, title=title, description=f"{'; '.join(clauses)}.")


def _told(name: str, dot: Dot) -> str:
    return f"{name} {with_error(dot.value, dot.error)}"


def gains(found: Sequence[Gain], threshold: float | None) -> Picture:
    """Return what it brings to give each element back to prefill, with the threshold from which it stays there."""
    shown = sorted(found, key=lambda gain: -gain.gain)[:MOST_ROWS]

    def draw(sheet: Sheet) -> None:
        left, labels = _labels(sheet, [_name_of(gain.element) for gain in shown])
        (axes,) = sheet.panels(22 * len(shown), left=left, top=8 + 18 * sheet.legend_rows(3))
        handles = []
        for spared, label, look in ((True, "given back to prefill", _LOOKS[2]), (False, "lost in prefill too", _LOOKS[0])):
            there = [(row, Dot(gain.gain, gain.error)) for row, gain in enumerate(shown) if gain.spared == spared]
            if there:
                handles.append(_points(axes, there, label=label, **look))
        axes.axvline(0, color=LINE, linewidth=1.2, zorder=0)
        if threshold is not None:
            handles.append(axes.axvline(threshold, color=WARM, linestyle=(0, (5, 3)), linewidth=1.3, label="threshold"))
        _by_name(axes, labels, "points gained")
        sheet.legend(handles)

    told = [f"{_name_of(gain.element)} {signed(gain.gain)} ({'given back' if gain.spared else 'lost too'})" for gain in shown]
    beside = "" if threshold is None else f" The threshold is {plain(threshold, 2)} points."
    return picture("gains", draw, title="Gain of each element", description=f"{'; '.join(told)}.{beside}")


def _name_of(text: str) -> str:
    return element(text) if "." in text else f"block{'s' if '+' in text else ''} {text}"


def merges(results: Sequence[MergeResult]) -> Picture:
    """Return the errors behind each merge before and after training, beside those of a drop."""
    shown = sorted(results, key=lambda merge: merge.pair)[:MOST_ROWS]
    series = (
        ("before training", "untrained", {"color": QUIET, "marker": "o", "markerfacecolor": SURFACE}),
        ("after", "trained", {"color": ACCENT, "marker": "o"}),
        ("a drop instead", "drop", {"color": WARM, "marker": "|", "markersize": 12, "markeredgewidth": 2.2}),
    )

    def draw(sheet: Sheet) -> None:
        left, labels = _labels(sheet, ["+".join(map(str, merge.pair)) for merge in shown])
        (axes,) = sheet.panels(ROW * len(shown), left=left, top=8 + 18 * sheet.legend_rows(3))
        for row, merge in enumerate(shown):
            axes.plot([merge.untrained, merge.trained], [row, row], color=TINT, linewidth=4, solid_capstyle="butt")
        handles = []
        for label, field, look in series:
            values = [getattr(merge, field) for merge in shown]
            style = {"markersize": 6.5, "linestyle": "none", **look}
            handles += axes.plot(values, range(len(shown)), label=label, **style)
        _by_name(axes, labels, "mean squared error of the stream behind it")
        if min(min(m.untrained, m.trained, m.drop) for m in shown) > 0:
            axes.set_xscale("log")
        sheet.legend(handles)

    told = [
        f"{'+'.join(map(str, m.pair))} from {m.untrained:.3g} to {m.trained:.3g}, a drop {m.drop:.3g}" for m in shown
    ]
    return picture("merges", draw, title="Merge losses", description=f"Mean squared errors of {'; '.join(told)}.")


def costs(shares: Mapping[str, float]) -> Picture:
    """Return what is left of each cost, in percent of the dense model's."""

    def draw(sheet: Sheet) -> None:
        left, labels = _labels(sheet, list(shares))
        (axes,) = sheet.panels(ROW * len(shares), left=left, top=4)
        rows = range(len(shares))
        axes.barh(rows, [100] * len(shares), height=0.5, color=TINT, linewidth=0)
        axes.barh(rows, [100 * share for share in shares.values()], height=0.5, color=ACCENT, linewidth=0)
        for row, share in enumerate(shares.values()):
            inside = share > 0.25
            axes.text(
                100 * share + (-2 if inside else 2), row, f"{plain(100 * share)} %", va="center", ha="right" if inside else "left",
                color=SURFACE if inside else INK, fontsize=11,
            )  # fmt: skip
        _by_name(axes, labels, "percent of the dense model's")
        axes.set_xlim(0, max(100, *(100 * share for share in shares.values())))
        axes.grid(visible=False)

    told = ", ".join(f"{name} {plain(100 * share)} %" for name, share in shares.items())
    return picture("costs", draw, title="Costs that are left", description=f"Of the dense model's: {told}.")


def more_than_shown(count: int) -> str:
    """Return the sentence that a caption needs where a picture leaves lines out."""
    return f" The picture shows {MOST_ROWS} of {counted(count, 'line')}, the table all." if count > MOST_ROWS else ""


def _labels(sheet: Sheet, names: Sequence[str]) -> tuple[float, list[str]]:
    """Return the room that names need on the left, and the names cut to fit into it."""
    most = 17 if sheet.is_narrow else 42
    labels = [cut(name, most) for name in names]
    return 6.6 * max(map(len, labels)) + 12, labels


def _points(axes: Any, there: Sequence[tuple[float, Dot]], *, label: str, **look: Any) -> Any:
    """Draw points with bars of one standard error to both sides."""
    rows, values = [row for row, _ in there], [dot for _, dot in there]
    for row, dot in there:
        if dot.error:
            axes.plot([dot.value - dot.error, dot.value + dot.error], [row, row], color=look["color"], linewidth=1.4)
    (points,) = axes.plot([dot.value for dot in values], rows, label=label, **{"markersize": 6, "linestyle": "none", **look})
    return points


def _by_name(axes: Any, labels: Sequence[str], unit: str) -> None:
    axes.set(ylim=(len(labels) - 0.5, -0.5), yticks=range(len(labels)), xlabel=unit)
    axes.set_yticklabels(labels, fontsize=12, color=INK)
    axes.grid(visible=False, axis="y")
    axes.grid(visible=True, axis="x")
    axes.tick_params(axis="x", labelcolor=SOFT)
