"""What a notebook shows of a plan, and of tables and bars beside it: HTML that brings its own looks and needs no script."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from html import escape

from pdtrim_core.plan.diagram import SIGNS, STAGES, meanings
from pdtrim_core.plan.plan import Plan, State
from pdtrim_core.wording import visible

LOOKS: dict[State, str] = {
    "run": "background:#1f57c3;color:#fff",
    "gone": "border:1px dashed #8a93a3;color:#8a93a3",
    "kv-only": "background:#d9e5fb;color:#14181f",
    "merged": "background:#b5520a;color:#fff",
    "into": "border:1px dashed #b5520a;color:#b5520a",
    "shrunk": "background:#6b93e0;color:#fff",
    "no-mlp": "background:linear-gradient(#1f57c3 50%,#fff 50%);color:#8a93a3;border:1px dashed #8a93a3",
    "no-attention": "background:linear-gradient(#fff 50%,#1f57c3 50%);color:#8a93a3;border:1px dashed #8a93a3",
}
CELL = (
    "display:inline-block;box-sizing:border-box;width:1.7em;height:1.7em;margin:1px;text-align:center;font:11px/1.7em sans-serif"
)
TABLE = "border-collapse:collapse;margin:.6em 0;font-variant-numeric:tabular-nums"
WIDTH, BAR, NAMES = 420, 18, 110
"""Pixels of a picture of bars: its widest bar, the height of a line, and the room for the names at the left."""


def ladder(plan: Plan, block_count: int) -> str:
    """Return the blocks of both stages as two rows of cells, and what their looks mean."""
    meaning = meanings(plan)
    rows = {stage: plan.states(stage, block_count) for stage in STAGES}
    lines = [
        f'<div style="white-space:nowrap"><span style="display:inline-block;width:5em">{stage}</span>'
        + "".join(_cell(str(block), state, f"block {block}: {meaning[state]}") for block, state in enumerate(states))
        + "</div>"
        for stage, states in rows.items()
    ]
    used = [state for state in SIGNS if any(state in states for states in rows.values())]
    meant = " &nbsp; ".join(f"{_cell('', state, '')} {meaning[state]}" for state in used)
    return f'<div style="overflow-x:auto">{"".join(lines)}</div><div>{meant}</div>'


def _cell(text: str, state: State, title: str) -> str:
    return f'<span title="{title}" style="{CELL};{LOOKS[state]}">{text}</span>'


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], best: Collection[tuple[int, int]] = (), caption: str = ""
) -> str:
    """Return a table; the first column stands at the left, numbers at the right; the cells (row, column) of `best` are bold."""
    head = "".join(f'<th style="{_side(column)}">{text_of(cell)}</th>' for column, cell in enumerate(heading))
    body = "".join(
        "<tr>"
        + "".join(
            f'<td style="{_side(column)}">{f"<b>{text_of(cell)}</b>" if (number, column) in best else text_of(cell)}</td>'
            for column, cell in enumerate(row)
        )
        + "</tr>"
        for number, row in enumerate(rows)
    )
    above = f'<caption style="text-align:left">{text_of(caption)}</caption>' if caption else ""
    return f'<table style="{TABLE}">{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _side(column: int) -> str:
    return f"text-align:{'right' if column else 'left'};padding:.2em .7em"


def bars(values: Sequence[tuple[str, float, float]], title: str) -> str:
    """Return a picture of numbers by name, each with its standard error."""
    most = max((value + error for _, value, error in values), default=0.0) or 1.0
    lines = []
    for number, (name, value, error) in enumerate(values):
        top, wide, reach = number * BAR, value / most * WIDTH, error / most * WIDTH
        colour = "#1f57c3" if name == "staged" else "#8a93a3"
        middle = top + BAR / 2
        place = f'x="{NAMES - 8}" y="{middle + 4:.1f}" text-anchor="end" font-size="12" fill="currentColor"'
        lines.append(
            f"<text {place}>{text_of(name)}</text>"
            f'<rect x="{NAMES}" y="{top + 3}" width="{wide:.1f}" height="{BAR - 6}" fill="{colour}"/>'
            f'<path d="M{NAMES + wide - reach:.1f} {middle}H{NAMES + wide + reach:.1f}" stroke="#b5520a" stroke-width="2"/>'
        )
    size = f'width="{NAMES + WIDTH + 10}" height="{len(values) * BAR + 4}"'
    picture = f'<svg role="img" aria-label="{text_of(title)}" {size} xmlns="http://www.w3.org/2000/svg">{"".join(lines)}</svg>'
    return f"<div>{text_of(title)}</div>{picture}"


def text_of(text: str) -> str:
    """Return a text of others as it stands in HTML: nothing in it is markup, and nothing turns other text around."""
    return escape(visible(text))
