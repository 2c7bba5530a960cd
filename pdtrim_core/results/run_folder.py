"""The folder of a run: files written beside their name and moved into place, and the journal of measurements."""

from __future__ import annotations

import fcntl
import io
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import tomli_w

from pdtrim_core.data.readings import Reading, reading_from
from pdtrim_core.errors import PdtrimError, PlanError
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.reading import (
    JSON_BYTES,
    LINE_BYTES,
    UnreadableError,
    parse_json,
    parse_toml,
    read_bytes,
    read_json,
    read_text,
    read_toml,
)
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan, plan_from_json, plan_to_json
from pdtrim_core.results.old_formats import journal_line_of_1, resolved_recipe_of_1
from pdtrim_core.results.outcome import Outcome

UNCOMPARED = ("out", "plugins", "exporter", "report")
"""Recipe keys that may differ between a run and its continuation: they change no measurement."""
OWN_FILES = ("recipe.toml", "environment.json", "scores.json", "journal.jsonl", "plan.json", "outcome.json", "report.html")


OWN_FOLDERS = ("merges", "replaced", "evaluations")


class RunFolder:
    """A run's files. Open one with `open_run_folder`, which holds it against a second run meanwhile."""

    def __init__(self, path: Path, journal: FileIO, known: Mapping[str, Mapping[Plan, Reading]]) -> None:
        self.path = path
        self.known = known
        self._journal = journal

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run, whole or not at all."""
        return write_whole(self.path / name, text)

    def note(self, part: str, plan: Plan, reading: Reading) -> None:
        """Append a measurement to the journal, at once on disk. `part` names the items it was made on."""
        line = json.dumps({"part": part, "plan": plan_to_json(plan), **vars(reading)}) + "\n"
        left = memoryview(line.encode())
        with writing(self.path / "journal.jsonl"):
            while left:
                left = left[self._journal.write(left) :]

    def check_same(self, key: Mapping[str, str]) -> None:
        """Raise `PdtrimError` if the measurements in the journal were made with other weights or data."""
        path = self.path / "environment.json"
        if any(self.known.values()) and path.is_file():
            before = _json_or_empty(path)
            changed = [name for name, value in key.items() if before.get(name) != value]
            if changed:
                raise PdtrimError(
                    f"{self.path} holds measurements made with other {' and '.join(changed)}: start anew with --fresh, or "
                    "choose another folder with --out"
                )


@contextmanager
def open_run_folder(path: Path, recipe: Mapping[str, Any], *, fresh: bool = False) -> Iterator[RunFolder]:
    """Open the folder of a run, to begin it or to go on with it.

    Raises `PdtrimError` when it holds a run of another recipe (unless `fresh`), or when a run is working in it now.
    """
    with writing(path):
        path.mkdir(parents=True, exist_ok=True)
    journal_path = path / "journal.jsonl"
    with writing(journal_path):
        # Not buffered: what is written is on its way to the disk, and a disk that is full says so here and not at the end.
        journal = journal_path.open("ab", buffering=0)
    with journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PdtrimError(f"another run is working in {path}: wait for it, or choose another folder with --out") from None
        if fresh:
            journal.truncate(0)
            _clear(path)
        else:
            _refuse_other_recipe(path, recipe)
        write_whole(path / "recipe.toml", tomli_w.dumps(dict(recipe)))
        yield RunFolder(path, journal, _read_journal(journal_path))


def _clear(path: Path) -> None:
    for name in OWN_FILES:
        if name != "journal.jsonl":
            (path / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)


def _refuse_other_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    try:
        before = read_toml(path / "recipe.toml")
    except FileNotFoundError:
        return
    except UnreadableError as error:
        raise PdtrimError(f"{error}: start anew with --fresh") from None
    changed = changed_keys(resolved_recipe_of_1(before), parse_toml(tomli_w.dumps(dict(recipe))))
    if changed:
        raise PdtrimError(
            f"{path} holds a run of another recipe, which differs in {', '.join(changed)}: start anew with --fresh, or "
            "choose another folder with --out"
        )


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two resolved recipes differ, those left out that change no measurement."""
    return sorted(_differences(before, now))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key in {*before, *now} - (set(UNCOMPARED) if not place else set()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{place}{key}.")
        elif old != new:
            yield f"{place}{key}"


def _read_journal(path: Path, *, mend: bool = True) -> dict[str, dict[Plan, Reading]]:
    """Return the readings of a journal by part.

    A last line that was torn by a crash is dropped, and with `mend` cut off: a run that goes on writes behind it. One who only
    reads leaves it, for a run may be writing it now.
    """
    known: dict[str, dict[Plan, Reading]] = {}
    whole, _, torn = read_bytes(path).rpartition(b"\n")
    if torn and mend:
        with path.open("r+b") as file:
            file.truncate(len(whole) + (1 if whole else 0))
    for number, line in enumerate(io.BytesIO(whole), start=1):
        try:
            data = journal_line_of_1(parse_json(line.rstrip(b"\n"), most=LINE_BYTES))
            part, plan = str(data.pop("part")), plan_from_json(data.pop("plan"))
            reading = reading_from(data)
        except (ValueError, KeyError, TypeError, AttributeError, PdtrimError) as error:
            raise PdtrimError(f"{path}, line {number}, is no measurement ({error}): start anew with --fresh") from None
        known.setdefault(part, {})[plan] = reading
    return known


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except UnreadableError:
        return {}
    return data if isinstance(data, dict) else {}


def load_outcome(path: Path) -> Outcome:
    """Return the outcome of a finished run. Raises `PdtrimError` for a folder that holds none."""
    file = path / "outcome.json"
    if not path.is_dir():
        raise PdtrimError(f"{path} is not a folder: name the folder of a run")
    if not file.is_file():
        begun = (path / "journal.jsonl").is_file()
        hint = "its run has not finished: run its recipe again to go on" if begun else "name the folder of a run"
        raise PdtrimError(f"{path} has no outcome.json: {hint}")
    return Outcome.from_json(_text_of(file), str(file))


def measured_in(path: Path) -> dict[str, dict[Plan, Reading]]:
    """Return the readings in a run folder's journal, by the part of the items that they were made on."""
    if not (path / "journal.jsonl").is_file():
        raise PdtrimError(f"{path} has no journal.jsonl: name the folder of a run")
    return _read_journal(path / "journal.jsonl", mend=False)


def load_plan(path: Path) -> SavedPlan:
    """Return the plan in a run folder or in a plan file. Raises `PdtrimError` for a run that has none, with the reason."""
    file = path / "plan.json" if path.is_dir() else path
    if path.is_dir() and not file.exists() and (path / "outcome.json").is_file():
        # Not every run has the exporter of plans; its outcome has the plan, or says why there is none.
        try:
            return load_outcome(path).plan
        except PlanError as error:
            raise PlanError(f"{path}: {error}") from None
    return SavedPlan.from_json(_text_of(file), str(file))


def _text_of(file: Path) -> str:
    try:
        return read_text(file, JSON_BYTES)
    except FileNotFoundError:
        raise PdtrimError(f"{file} does not exist") from None
