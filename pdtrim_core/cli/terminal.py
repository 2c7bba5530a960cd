"""Everything that commands print goes through here, so that names and texts of others cannot steer the terminal.

ruff forbids `print` in the other modules of this room, and a test forbids consoles of rich.
"""

from __future__ import annotations

import functools
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from pdtrim_core.wording import visible, visible_in_data

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column, Table


COMMAND = re.compile(r"\s*(next:\s*)?(pdtrim-core|pip|pytest) ")
"""The beginning of a line with a command to copy, which a break would spoil."""
GAP = 2
"""Characters between two columns of a table."""


def say(text: object = "", *, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print text; characters in it that would steer a terminal are written out.

    In a terminal lines that are wider than it are broken between words, but for those with a command to copy.
    """
    stream = file or sys.stdout
    shown = visible(str(text))
    print(fitted(shown, shutil.get_terminal_size().columns) if stream.isatty() else shown, end=end, file=stream, flush=flush)


def fitted(text: str, width: int) -> str:
    """Return text with lines of at most so many characters, broken between words; what follows is indented under its line."""
    return "\n".join(_fitted_line(line, width) for line in text.split("\n"))


def _fitted_line(line: str, width: int) -> str:
    if len(line) <= width or COMMAND.match(line):
        return line
    indent = min(len(line) - len(line.lstrip()) + 4, width // 2)
    wrapper = textwrap.TextWrapper(
        width,
        subsequent_indent=" " * indent,
        break_long_words=False,
        break_on_hyphens=False,
        replace_whitespace=False,
        expand_tabs=False,
    )
    # A question ends with a space, behind which the answer is typed.
    return "\n".join(wrapper.wrap(line)) + line[len(line.rstrip()) :]


def print_table(table: Table) -> None:
    """Print a table of rich. In a terminal that is too narrow for it headings are broken between words, and numbers are not.

    Where that is not enough, it comes in several parts, each with the names at the left. Elsewhere a row is a line: a cell that
    is folded to a few letters cannot be read.
    """
    screen, whole = console(), console(width=10_000)
    # What rich takes for a terminal may be a pipe that wants colours.
    if not sys.stdout.isatty() or whole.measure(table).maximum <= screen.width:
        whole.print(table)
        return
    for number, part in enumerate(_parts(table, screen.width)):
        if number:
            say()
        whole.print(part)


def _parts(table: Table, width: int) -> Iterator[Table]:
    """Yield tables of at most so many characters, as far as a single column is no wider, that together have all columns."""
    count = next((number for number, column in enumerate(table.columns) if column.justify != "left"), 1) or 1
    names, rest = table.columns[:count], list(table.columns[count:])
    while rest:
        taken = [rest.pop(0)]
        while rest and sum(_width(column) + GAP for column in (*names, *taken, rest[0])) - GAP <= width:
            taken.append(rest.pop(0))
        yield _table_of([*names, *taken])


def _table_of(columns: Sequence[Column]) -> Table:
    from rich.table import Table  # noqa: PLC0415 - not every command draws

    part = Table(box=None, pad_edge=False, padding=(0, GAP // 2))
    for column in columns:
        title = textwrap.fill(str(column.header), _width(column), break_on_hyphens=False)
        part.add_column(title, no_wrap=True, justify=column.justify)
    for cells in zip(*(column.cells for column in columns), strict=True):
        part.add_row(*cells)
    return part


def _width(column: Column) -> int:
    """Return the width that a column needs: of its widest cell, and of the longest word above it."""
    return max([1, *(len(str(cell)) for cell in column.cells), *map(len, str(column.header).split())])


def say_data(text: str, *, end: str = "\n") -> None:
    """Print JSON or TOML; such characters are written out so that it reads back to the same."""
    print(visible_in_data(text), end=end)  # noqa: T201 - the other one


def console(file: TextIO | None = None, **options: Any) -> Console:
    """Return a console of rich for tables, colours and bars, in which only rich itself steers the terminal.

    What is in square brackets or between colons in a name is text too.
    """
    return _console_class()(file=file, highlight=False, markup=False, emoji=False, **options)


@functools.cache
def _console_class() -> type[Console]:
    from rich.console import Console  # noqa: PLC0415 - not every command draws
    from rich.segment import Segment  # noqa: PLC0415 - the same
    from rich.text import Text  # noqa: PLC0415 - the same

    class VisibleConsole(Console):
        def render_str(self, text: str, **how: Any) -> Text:
            # Before rich measures it, so that columns are wide enough.
            return super().render_str(visible(text), **how)

        def render(self, renderable: Any, options: Any = None) -> Iterator[Segment]:
            for segment in super().render(renderable, options):
                # A segment of control is rich's own, such as the movement of a bar.
                yield segment if segment.control else Segment(visible(segment.text), segment.style)

    return VisibleConsole
