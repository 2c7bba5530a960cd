"""The tables of `pdtrim-core bench`: times beside the dense model's, and what each model needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdtrim_core.cli.terminal import print_table, say

if TYPE_CHECKING:
    from rich.table import Table

    from pdtrim_core.timing.results import Footprint, Latencies, Timing

MEASURES = {"forward": "forward, ms", "prefill": "prefill, tokens/s", "decode": "decode, ms a token"}


def print_latencies(found: Latencies) -> None:
    """Print what a benchmark found."""
    threads = f", {found.threads} threads" if found.device == "cpu" else ""
    say(f"{found.model}, {found.dtype} on {found.device}{threads}; the first token is made by {found.first_token}\n")
    print_table(_times(found.timings))
    say()
    print_table(_needs(found))
    if any(timing.model == "decode" for timing in found.timings):
        say("\nThe unified model's decode is the decode model's.")
    for note in found.notes:
        say(f"note: {note}")


def _times(timings: tuple[Timing, ...]) -> Table:
    table = _table(("", "batch", "tokens", "model", "dense", "pruned", "measured", "quartiles", "ideal"), text=("", "model"))
    before = None
    for timing in timings:
        new = timing.setting != before
        before = timing.setting
        what = (MEASURES[timing.measure], str(timing.batch), str(timing.tokens)) if new else ("", "", "")
        table.add_row(
            *what,
            timing.model,
            _speed(timing, timing.dense) if new else "",
            _speed(timing, timing.seconds),
            f"x {timing.ratio:.3f}",
            f"{timing.low:.3f} to {timing.high:.3f}",
            f"x {timing.ideal:.3f}",
        )
    return table


def _speed(timing: Timing, seconds: float) -> str:
    if timing.measure == "prefill":
        return f"{timing.tokens * timing.batch / seconds:,.0f}"
    milliseconds = 1000 * seconds
    return (
        f"{milliseconds:,.0f}" if milliseconds >= 1000 else f"{milliseconds:.1f}" if milliseconds >= 10 else f"{milliseconds:.2f}"
    )


def _needs(found: Latencies) -> Table:
    titles = ("model", "weights, MB", "read a token, MB", "K/V a prompt token, KB", "prefill beside weights, MB", "decode, MB")
    table = _table(titles, text=("model",))
    for footprint in found.footprints:
        table.add_row(
            footprint.model,
            _mega(footprint.weights),
            "-" if footprint.model == "prefill" else _mega(footprint.read_a_token),
            f"{footprint.kv_a_token / 1e3:.1f}",
            _beside(footprint, "prefill"),
            _beside(footprint, "decode"),
        )
    return table


def _beside(footprint: Footprint, stage: str) -> str:
    found = footprint.beside.get(stage)
    return "-" if found is None else _mega(found)


def _mega(count: int) -> str:
    return f"{count / 1e6:,.0f}"


def _table(titles: tuple[str, ...], *, text: tuple[str, ...]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - not every command draws

    table = Table(box=None, pad_edge=False)
    for title in titles:
        table.add_column(title, no_wrap=True, justify="left" if title in text else "right")
    return table
