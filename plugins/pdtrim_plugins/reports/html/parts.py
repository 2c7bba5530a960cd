"""What a page is made of: sections with pictures, tables and commands; plain data, which the template lays out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from pdtrim_plugins.reports.html.svg import Picture


@dataclass(frozen=True)
class Cell:
    """One cell of a table: its text, what sorting goes by where that is not the text, and whether it stands out."""

    text: str
    key: float | None = None
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; columns whose cells have keys are numbers. `fold` is the line that opens it, if it is folded away."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    caption: str
    fold: str = ""
    kind: ClassVar[str] = "table"

    @property
    def numeric(self) -> list[bool]:
        """For each column whether it has numbers."""
        return [any(row[column].key is not None for row in self.rows) for column in range(len(self.head))]


@dataclass(frozen=True)
class Figure:
    """A picture with what is written under it, and above it where a section has several of a sort."""

    picture: Picture
    caption: str
    heading: str = ""
    kind: ClassVar[str] = "figure"
    fold: ClassVar[str] = ""


@dataclass(frozen=True)
class Text:
    """Lines as they are: commands to type, or a file. `fold` is the line that opens them, if they are folded away."""

    lines: str
    fold: str = ""
    kind: ClassVar[str] = "text"


@dataclass(frozen=True)
class Listing:
    """Sentences one below the other."""

    items: Sequence[str]
    kind: ClassVar[str] = "list"
    fold: ClassVar[str] = ""


Part = Table | Figure | Text | Listing


@dataclass(frozen=True)
class Section:
    """A section of the page; one without parts and lead is left out."""

    name: str
    title: str
    lead: str = ""
    parts: Sequence[Part] = ()


@dataclass(frozen=True)
class Tile:
    """One figure at the top: what it is, how much, and beside what."""

    label: str
    value: str
    about: str


@dataclass(frozen=True)
class Page:
    """A whole page: its name, the model that it is about, what happened in a sentence, and a warning where that is not all."""

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
