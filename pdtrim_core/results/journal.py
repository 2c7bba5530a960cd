"""The journal of a run: one measurement a line, appended as it is made; what is no measurement is lost alone."""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from io import FileIO
from pathlib import Path
from typing import Any

from pdtrim_core.data.readings import Reading, reading_from
from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.files.atomic_files import writing
from pdtrim_core.files.reading import LINE_BYTES, UnreadableError, open_regular, parse_json
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import plan_from_json
from pdtrim_core.results.old_formats import journal_line_of_1

ELSEWHERE = "remove it, or choose another folder with --out"
TOLD_LINES = 3
"""Lines of a damaged journal that are told one by one."""


@dataclass(frozen=True)
class Entry:
    """A reading in a journal, and what measured it (see `RunFolder.note`)."""

    reading: Reading
    by: str


@dataclass(frozen=True)
class Journal:
    """What a journal has: entries that count, by part and plan, and what to say of each line that is no measurement."""

    parts: dict[str, dict[Plan, Entry]] = field(default_factory=dict)
    lost: tuple[str, ...] = ()

    def take(self, line: dict[str, Any]) -> None:
        """Take in the data of one line. Raises `ValueError`, `TypeError` or `PdtrimError` for what is no measurement."""
        part = _text(line.pop("part"))
        if "forget" in line:
            self.forget(part, [_text(by) for by in line["forget"]])
            return
        plan, by = plan_from_json(line.pop("plan")), _text(line.pop("by", ""))
        reading = reading_from(line)
        self.parts.setdefault(part, {})[plan] = Entry(reading, by)

    def forget(self, part: str, by: Collection[str]) -> None:
        """Leave out the entries of a part that these measured."""
        entries = self.parts.get(part, {})
        self.parts[part] = {plan: entry for plan, entry in entries.items() if entry.by not in by}


def open_journal(path: Path) -> FileIO:
    """Open the journal of a run to append to it. Raises `PdtrimError` for a link, a pipe and the like in its place."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir())):
            raise PdtrimError(f"{path} is no regular file, so a run does not write to it: {ELSEWHERE}") from None
        with writing(path):
            raise
    # Not buffered: what is written is on its way to the disk, and a disk that is full says so here and not at the end.
    return FileIO(descriptor, "ab")


def read_journal(path: Path, *, mend: bool = True) -> Journal:
    """Return what a journal has.

    A last line that was torn by a crash is dropped, and with `mend` cut off: a run that goes on writes behind it. One who only
    reads leaves it, for a run may be writing it now. Any other line that is no measurement is lost alone.
    """
    found, lost, end = Journal(), [], 0
    with open_regular(path) as file:
        for number in itertools.count(1):
            line = file.readline(LINE_BYTES)
            while len(line) >= LINE_BYTES and not line.endswith(b"\n"):
                line = line[:1] + file.readline(LINE_BYTES)
            if not line.endswith(b"\n"):
                break
            end = file.tell()
            try:
                found.take(journal_line_of_1(_table(parse_json(line[:-1], most=LINE_BYTES))))
            except (ValueError, TypeError, PdtrimError) as error:
                lost.append(f"{path}, line {number}, is no measurement ({_reason(error)}) and is left out")
    if line and mend:
        os.truncate(path, end)
    if len(lost) > TOLD_LINES:
        lost[TOLD_LINES:] = [f"{path}: {len(lost) - TOLD_LINES} more lines are no measurements and are left out"]
    return replace(found, lost=tuple(lost))


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is no table")
    for key in ("part", "plan") if "forget" not in value else ("part",):
        if key not in value:
            raise TypeError(f"it has no '{key}'")
    return value


def _reason(error: Exception) -> str:
    if isinstance(error, UnreadableError):
        return error.reason
    return str(error) if isinstance(error, PdtrimError) else reason_of(error)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value
