"""Everything that commands print goes through here, so that names and texts of others cannot steer the terminal.

ruff forbids `print` in the other modules of this room, and a test forbids consoles of rich.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from pdtrim_core.wording import visible, visible_in_data

if TYPE_CHECKING:
    from rich.console import Console


def say(text: object = "", *, end: str = "\n", file: TextIO | None = None, flush: bool = False) -> None:
    """Print text; characters in it that would steer a terminal are written out."""
    print(visible(str(text)), end=end, file=file or sys.stdout, flush=flush)


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
