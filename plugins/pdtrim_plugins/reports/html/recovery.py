"""The section on recovery: how far the pair was from the dense model before and after it, and how training went."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pdtrim_core.api import Metric, Outcome, RecoveryResult
from pdtrim_plugins.reports import nearness
from pdtrim_plugins.reports.html.parts import Cell, Figure, Part, Section, Table, number, words
from pdtrim_plugins.reports.html.svg import ACCENT, INK, QUIET, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import PLUS_MINUS, cut, duration, joined, plain

TITLE = "What recovery made good"
LOOKS: Sequence[Mapping[str, Any]] = (
    {"color": QUIET, "linestyle": (0, (4, 2))},
    {"color": WARM},
    {"color": INK, "linestyle": (0, (1, 1.5))},
    {"color": ACCENT},
)
"""How the lines of a picture look, from the pair before to the pair after all. They differ in more than their colour."""
STEEP = 50
"""From so many times the least loss on, the axis of losses is logarithmic."""


def recovery_section(outcome: Outcome) -> Section:
    """Show how each recovery came out; a run without any has no such section."""
    results = outcome.recovery
    if not results:
        return Section("recovery", TITLE)
    parts: list[Part] = []
    curves = _curves(results)
    if len(curves) > 1:
        caption = (
            "The distance from the dense model at each token behind a prompt, before and after, on texts like those that it was "
            "computed from, but not these. Lower is nearer."
        )
        parts.append(Figure(_by_position(curves), caption))
    trained = [(place, result) for place, result in enumerate(results) if len(result.losses) > 1]
    for place, result in trained:
        caption = f"The loss of {result.name} on what it trains on; where there were many steps, the means of neighbouring ones."
        parts.append(Figure(_losses(f"recovery-losses-{place}", result), caption))
    parts.append(_table(results))
    return Section("recovery", TITLE, _lead(outcome), parts)


def _lead(outcome: Outcome) -> str:
    said = nearness.verdict_on_recovery(outcome.fidelity, PLUS_MINUS) if outcome.fidelity else ""
    measured = f"On held-out items {said}. " if said else ""
    seconds = duration(sum(result.seconds for result in outcome.recovery))
    return f"{measured}{_which(outcome.recovery)} All took {seconds}, on texts that do not measure."


def _which(results: Sequence[RecoveryResult]) -> str:
    kept, left_out = nearness.kept_of(results), [result.name for result in results if not result.kept]
    told = [f"Kept: {joined(kept)}."] if kept else []
    told += [f"Left out, as the pair came no nearer: {joined(left_out)}."] if left_out else []
    return " ".join(told)


def _curves(results: Sequence[RecoveryResult]) -> dict[str, Sequence[float]]:
    """Return the divergence by position before all, and after the last recoveries that were kept, as many as have a look."""
    kept = [result for result in results if result.kept and result.by_position_after]
    if not kept:
        return {}
    curves: dict[str, Sequence[float]] = {"before": kept[0].by_position_before}
    for place, result in list(enumerate(kept, start=1))[1 - len(LOOKS) :]:
        again = sum(one.name == result.name for one in kept) > 1
        curves[f"after {cut(result.name, 24)}{f' ({place})' if again else ''}"] = result.by_position_after
    return curves


def _by_position(curves: Mapping[str, Sequence[float]]) -> Picture:
    looks = [*LOOKS[: len(curves) - 1], LOOKS[-1]]

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(190, top=sheet.legend_height(list(curves)))
        handles: list[Any] = []
        for (label, values), look in zip(curves.items(), looks, strict=True):
            handles += axes.plot(range(1, len(values) + 1), values, label=label, **look)
        longest = max(map(len, curves.values()))
        axes.set(xlabel="token behind the prompt", ylabel="KL, nats", xlim=(0.5, longest + 0.5))
        axes.set_ylim(bottom=0)
        _whole_numbers(axes)
        sheet.legend(handles)

    told = [
        f"{label}: {plain(_mean(values), 3)} on average, {plain(values[0], 3)} at the first" for label, values in curves.items()
    ]
    return picture("recovery-positions", draw, title="KL divergence by token position", description=f"{'; '.join(told)}.")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _losses(name: str, result: RecoveryResult) -> Picture:
    losses = result.losses
    shares = [100 * place / (len(losses) - 1) for place in range(len(losses))]

    def draw(sheet: Sheet) -> None:
        (axes,) = sheet.panels(150, top=8)
        axes.plot(shares, losses, color=ACCENT)
        axes.set(xlabel="percent of the training", ylabel="loss", xlim=(0, 100))
        if 0 < min(losses) < max(losses) / STEEP:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")

    told = f"From {losses[0]:.3g} to {losses[-1]:.3g}; the lowest is {min(losses):.3g}."
    return picture(name, draw, title=f"Loss of {result.name}", description=told)


def _whole_numbers(axes: Any) -> None:
    from matplotlib.ticker import MaxNLocator  # noqa: PLC0415 - listings must not load it

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _table(results: Sequence[RecoveryResult]) -> Table:
    body = [
        [
            words(result.name),
            _nats(result.before),
            _nats(result.after),
            _taken_away(result),
            words(joined([stage for stage, changed in result.changed.items() if changed])),
            number(result.tokens, f"{result.tokens:,}"),
            number(result.seconds, duration(result.seconds)),
        ]
        for result in results
    ]
    head = ["", "KL before", "KL after", "taken away", "changed", "tokens", "time"]
    caption = (
        "KL divergence from the dense model in nats a token on other texts, the stages whose weights changed, and the tokens "
        "that each was computed from"
    )
    return Table(head, body, caption)


def _nats(metric: Metric) -> Cell:
    return number(metric.value, nearness.with_error(metric, 3, PLUS_MINUS))


def _taken_away(result: RecoveryResult) -> Cell:
    return number(result.taken_away or 0.0, nearness.taken_away(result), strong=result.kept)
