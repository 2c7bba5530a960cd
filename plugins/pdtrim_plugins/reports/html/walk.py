"""The search as a picture: every candidate, the path that was taken, the best, and the temperature."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pdtrim_core.api import SearchStep
from pdtrim_plugins.reports.html.svg import ACCENT, QUIET, SOFT, SURFACE, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import counted, plain


def paths(steps: Sequence[SearchStep]) -> list[list[int]]:
    """Return the paths that a search took, as positions of its steps; none for a search that sets no floors.

    A path begins at the best of the plans requested without a floor, and continues with every plan that reached its floor.
    """
    found: list[list[int]] = []
    begins = True
    for position, step in enumerate(steps):
        if step.floor is None:
            if begins and found:
                start = found[-1]
                start[0] = max(start[0], position, key=lambda one: (_value(steps[one]), -one))
            else:
                found.append([position])
            begins = True
            continue
        begins = False
        if step.taken and found:
            found[-1].append(position)
    return [path for path in found if len(path) > 1]


def best_of(steps: Sequence[SearchStep]) -> int | None:
    """Return the position of the best plan that may be the result, the first of equal ones."""
    able = [position for position, step in enumerate(steps) if step.may_win and step.score is not None and step.taken]
    return max(able, key=lambda position: (_value(steps[position]), -position), default=None)


def _value(step: SearchStep) -> float:
    return -1.0 if step.score is None else step.score


def walk(steps: Sequence[SearchStep], dense: float | None, *, what: str = "candidate") -> Picture:
    """Return a search as a picture. `dense` is the dense model's score, `what` names a step."""

    def draw(sheet: Sheet) -> None:
        warm = [step.temperature for step in steps]
        has_temperature = any(value is not None for value in warm)
        top = sheet.legend_height(["candidate", "at most (cut short)", "path taken", "best", "dense model"])
        above, *below = sheet.panels(210, *([54] if has_temperature else []), top=top, gap=10)
        handles = _candidates(above, steps) + _marks(above, steps)
        if dense is not None:
            handles.append(above.axhline(dense, color=SOFT, linestyle=(0, (1.5, 2.5)), linewidth=1.3, label="dense model"))
        above.set(ylabel="score", xlim=(0, len(steps) + 1))
        above.margins(y=0.1)
        for axes in below:
            known = [(place, value) for place, value in enumerate(warm, start=1) if value is not None]
            axes.fill_between(*zip(*known, strict=True), color=WARM, alpha=0.35, linewidth=0, step="mid")
            axes.set(ylabel="temp.", ylim=(0, max(value for _, value in known) * 1.1))
            axes.yaxis.set_major_locator(_few_ticks())
        (below or [above])[0].set_xlabel(what)
        above.xaxis.set_major_locator(_few_ticks(8, integer=True))
        sheet.legend(handles)

    return picture("search", draw, title="The search", description=in_words(steps, dense))


def _few_ticks(most: int = 2, *, integer: bool = False) -> Any:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - listings must not load it

    return MaxNLocator(most, integer=integer)


def _candidates(axes: Any, steps: Sequence[SearchStep]) -> list[Any]:
    """Draw the candidates off the path: those measured in full, and those cut short, at the score they could reach at most."""
    handles = []
    taken = {position for path in paths(steps) for position in path}
    full = [(position + 1, step.score) for position, step in enumerate(steps) if step.score is not None and position not in taken]
    short = [(position + 1, step.ceiling) for position, step in enumerate(steps) if step.score is None]
    if full:
        look = {"markerfacecolor": SURFACE, "markeredgecolor": QUIET, "markersize": 5.5, "linestyle": "none"}
        handles += axes.plot(*zip(*full, strict=True), marker="o", label="candidate", **look)
    if short:
        look = {"color": QUIET, "markersize": 5.5, "linestyle": "none"}
        handles += axes.plot(*zip(*short, strict=True), marker=7, label="at most (cut short)", **look)
    return handles


def _marks(axes: Any, steps: Sequence[SearchStep]) -> list[Any]:
    """Draw the path and the best."""
    handles: list[Any] = []
    for number, path in enumerate(paths(steps)):
        score = [(position + 1, steps[position].score) for position in path]
        drawn = axes.plot(
            *zip(*score, strict=True), color=ACCENT, marker="o", markersize=5.5, drawstyle="steps-post", label="path taken"
        )
        handles += drawn if number == 0 else []
    best = best_of(steps)
    if best is not None:
        look = {"markersize": 13, "markerfacecolor": WARM, "markeredgecolor": SURFACE, "linestyle": "none"}
        handles += axes.plot([best + 1], [steps[best].score], marker="*", label="best", **look)
    return handles


def in_words(steps: Sequence[SearchStep], dense: float | None) -> str:
    """Return a search as sentences."""
    short = sum(step.score is None for step in steps)
    told = [f"{counted(len(steps), 'candidate')}, of which {short} cut short."]
    taken = sum(len(path) - 1 for path in paths(steps))
    if taken:
        told.append(f"The search continued from {taken} of them.")
    best = best_of(steps)
    if best is not None:
        told.append(f"The best is candidate {best + 1} with a score of {plain(_value(steps[best]))}.")
    if dense is not None:
        told.append(f"The dense model's score is {plain(dense)}.")
    return " ".join(told)
