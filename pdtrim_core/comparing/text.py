"""The text of a comparison: a heading, rows of cells, and which of them are best, as Markdown, as LaTeX, or for a terminal."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pdtrim_core.comparing.compare import ComparedRow, Comparison
from pdtrim_core.comparing.objective_cells import Cell
from pdtrim_core.plan.notebook import table, text_of

NOTHING = "-"
SMALL = 5.0
_COSTS: tuple[tuple[str, Callable[[ComparedRow], str]], ...] = (
    ("recovery", lambda row: ", ".join(row.recovery) or NOTHING),
    ("formats (prefill/decode)", lambda row: _formats(row.formats)),
    ("K/V selected, blocks", lambda row: str(row.selected or NOTHING)),
    ("prefill removed", lambda row: _percent(row.prefill_removed)),
    ("decode removed", lambda row: _percent(row.decode_removed)),
    ("pruning s", lambda row: NOTHING if row.pruning_seconds is None else f"{row.pruning_seconds:.0f}"),
    ("decode MB a token", lambda row: NOTHING if row.decode_bytes is None else f"{row.decode_bytes / 1e6:.1f}"),
    ("K/V KB a token", lambda row: NOTHING if row.kv_bytes is None else f"{row.kv_bytes / 1e3:.1f}"),
)


@dataclass(frozen=True)
class TextTable:
    """A table as text: its heading, its rows, and the cells (row, column) that are best."""

    heading: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    best: frozenset[tuple[int, int]]


def text_table_of(comparison: Comparison) -> TextTable:
    """Return a comparison as text cells: a value with its error in the first row, with the difference to it in the others."""
    averaged = any(row.average is not None for row in comparison.rows)
    titles = [_title(column.name, column.metric, higher=column.higher_is_better) for column in comparison.columns]
    shown = {
        "recovery": any(row.recovery for row in comparison.rows),
        "formats (prefill/decode)": any(any(row.formats) for row in comparison.rows),
        "K/V selected, blocks": any(row.selected for row in comparison.rows),
    }
    costs = [cost for cost in _COSTS if shown.get(cost[0], True)]
    heading = ("method", *titles, *(["average"] if averaged else []), *(title for title, _ in costs))
    rows = []
    digits = {column.name: _digits([row.cells.get(column.name) for row in comparison.rows]) for column in comparison.columns}
    for row in comparison.rows:
        cells = [_cell(row.cells.get(column.name), digits[column.name]) for column in comparison.columns]
        rows.append((row.name, *cells, *([_cell(row.average)] if averaged else []), *(cost(row) for _, cost in costs)))
    names = [column.name for column in comparison.columns] + ["average"]
    best = frozenset(
        (row, names.index(name) + 1) for name, numbers in comparison.best.items() for row in numbers if name in names
    )
    return TextTable(heading, tuple(rows), best)


def _formats(formats: tuple[str | None, str | None]) -> str:
    """Return the number formats of prefill and of decode, once where they are the same."""
    prefill, decode = (scheme or NOTHING for scheme in formats)
    return prefill if prefill == decode else f"{prefill}/{decode}"


def markdown(comparison: Comparison) -> str:
    """Return a comparison as a Markdown table, the best in bold, with its notes below."""
    grid = text_table_of(comparison)

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "| --- |" + " ---: |" * (len(grid.heading) - 1)
    rows = [
        line([_marked(cell, "**{}**") if (row, column) in grid.best else cell for column, cell in enumerate(cells)])
        for row, cells in enumerate(grid.rows)
    ]
    return "\n".join([line(grid.heading), rule, *rows, *(f"\n{note}" for note in notes_of(comparison))]) + "\n"


def latex(comparison: Comparison) -> str:
    """Return a comparison as a LaTeX table for the package booktabs, the best in bold, with its notes as comments."""
    grid = text_table_of(comparison)

    def line(cells: Sequence[str]) -> str:
        return " & ".join(cells) + r" \\"

    rows = [
        line(
            [
                _marked(_escaped(cell), r"\textbf{{{}}}") if (row, column) in grid.best else _escaped(cell)
                for column, cell in enumerate(cells)
            ]
        )
        for row, cells in enumerate(grid.rows)
    ]
    return (
        "\n".join(
            [
                *(f"% {note}" for note in notes_of(comparison)),
                rf"\begin{{tabular}}{{l{'r' * (len(grid.heading) - 1)}}}",
                r"\toprule",
                line([_escaped(cell) for cell in grid.heading]),
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
            ]
        )
        + "\n"
    )


def html(comparison: Comparison) -> str:
    """Return a comparison as HTML for a notebook, the best in bold, with its notes below."""
    grid = text_table_of(comparison)
    notes = "".join(f"<li>{text_of(note)}</li>" for note in notes_of(comparison))
    return f"{table(grid.heading, grid.rows, grid.best)}{f'<ul>{notes}</ul>' if notes else ''}"


def notes_of(comparison: Comparison) -> list[str]:
    """Return what stands below a comparison."""
    about = "in brackets: the difference to the first row and its standard error, paired over items where not said otherwise"
    return [*([about] if len(comparison.rows) > 1 else []), *comparison.notes]


def _title(name: str, metric: str, *, higher: bool) -> str:
    shown = name if metric in ("acc", "score") else f"{name} {metric}"
    return shown if higher else f"{shown} (lower is better)"


def _digits(cells: Sequence[Cell | None]) -> int:
    """Return the digits behind the point of a column: of numbers that are all small, such as nats, one would say little."""
    return 3 if all(abs(cell.value) < SMALL for cell in cells if cell is not None) else 1


def _cell(cell: Cell | None, digits: int = 1) -> str:
    if cell is None:
        return NOTHING
    if cell.difference is None:
        return _number(cell.value, digits) + ("" if cell.error is None else f" +- {_number(cell.error, digits)}")
    error = "" if cell.difference_error is None else f" +- {_number(cell.difference_error, digits)}"
    sign = "-" if cell.difference < 0 else "+"
    return f"{_number(cell.value, digits)} ({sign}{_number(abs(cell.difference), digits)}{error})"


def _number(value: float, digits: int) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.{digits}f}"


def _percent(share: float | None) -> str:
    return NOTHING if share is None else f"{100 * share + 0.0:.1f} %"


def _marked(cell: str, form: str) -> str:
    """Mark the value of a cell, not its difference."""
    value, _, rest = cell.partition(" ")
    return form.format(value) + (f" {rest}" if rest else "")


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    text = re.sub(r"[\\~^%&_#{}$]", lambda found: special.get(found[0], "\\" + found[0]), text)
    return text.replace("+-", r"$\pm$").replace("(-", "($-$")
