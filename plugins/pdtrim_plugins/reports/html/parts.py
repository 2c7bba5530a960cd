"""The parts of a page: sections with pictures, tables and commands, as plain data for the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from pdtrim_plugins.reports.html.svg import Picture


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, the sort key where that is not the text, and whether it is in bold."""

    text: str
    key: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; columns whose cells have keys are numbers. `fold` is the line that opens it, if it is collapsed at first."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    fold: str = ""
    kind: ClassVar[str] = "table"

    @cached_property
    def numeric(self) -> list[bool]:
        """For each column whether it has numbers."""
        return [any(row[column].key is not None for row in self.rows) for column in range(len(self.head))]


@dataclass(frozen=True)
class Figure:
    """A picture with its caption, and a heading where a section has several pictures."""

    picture: Picture
    caption: str
    heading: str = ""
    kind: ClassVar[str] = "figure"
    fold: ClassVar[str] = ""


@dataclass(frozen=True)
class Text:
    """Preformatted lines: commands to type, or a file. `fold` is the line that opens them, if they are collapsed at first."""

    lines: str
    fold: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Listing:
    """Sentences one below the other."""

    items: Sequence[str]
    kind: ClassVar[str] = "list"
    fold: ClassVar[str] = ""


@dataclass(frozen=True)
class Answer:
    """What one variant answers: as the dense model does, and from `rest` on otherwise; `about` says so in words."""

    variant: str
    same: str
    rest: str = ""
    about: str = ""


@dataclass(frozen=True)
class Answers:
    """A prompt, and what the variants answer to it, side by side."""

    heading: str
    prompt: str
    answers: Sequence[Answer]
    kind: ClassVar[str] = "answers"
    fold: ClassVar[str] = ""


Part = Table | Figure | Text | Listing | Answers


@dataclass(frozen=True)
class Section:
    """A section of the page; one without parts and without a lead is left out."""

    name: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Tile:
    """One figure at the top: its label, its value, and what to compare it with."""

    label: str
    value: str
    about: str


@dataclass(frozen=True)
class Page:
    """A whole page: its title, the model it is about, a sentence on what happened, and a warning if there is one."""

    title: str
    about: str
    sentence: str
    warning: str = ""
    tiles: Sequence[Tile] = ()
    sections: Sequence[Section] = ()

    @property
    def shown(self) -> list[Section]:
        """The sections that have something to show."""
        return [section for section in self.sections if section.lead or section.parts]


def number(value: float, text: str | None = None, *, strong: bool = False) -> Cell:
    """Return the cell of a number."""
    # A whole number is a float once it was in a file, and the page must not differ by that.
    return Cell(f"{value:g}" if text is None else text, float(value), strong)


def words(text: str, *, strong: bool = False) -> Cell:
    """Return the cell of a text."""
    return Cell(text, None, strong)


NOTHING = Cell("")
