"""The folder of a run: files written beside their name and moved into place, and the journal of measurements."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

import tomli_w

from pdtrim_core.data.readings import Reading
from pdtrim_core.errors import PdtrimError, PlanError
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.reading import (
    JSON_BYTES,
    UnreadableError,
    parse_toml,
    read_json,
    read_text,
    read_toml,
)
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.plan_file import SavedPlan, plan_to_json
from pdtrim_core.results.journal import ELSEWHERE, Journal, open_journal, read_journal
from pdtrim_core.results.old_formats import resolved_recipe_of_1
from pdtrim_core.results.outcome import Outcome

UNCOMPARED = ("out", "plugins", "exporter", "report", "evaluation.fidelity", "evaluation.answer_tokens", "evaluation.own_answers")
"""Recipe keys that may differ between a run and its continuation: they change no measurement."""
OWN_FILES = (
    "recipe.toml",
    "environment.json",
    "scores.json",
    "journal.jsonl",
    "plan.json",
    "outcome.json",
    "state.json",
    "report.html",
)
BEGINNING = ("recipe.toml", "environment.json", "journal.jsonl", "state.json")
"""Files of a run that has opened its model at most; with an empty journal they hold nothing that took time."""
OWN_FOLDERS = ("merges", "replaced", "recovered", "recovery-work", "formats", "evaluations")
SETTLE_SECONDS = 1.0
"""How long a measurement may be on its way to the disk: what a machine that loses power may lose."""


class RunFolder:
    """A run's files. Open one with `open_run_folder`, which holds it against a second run meanwhile."""

    def __init__(self, path: Path, journal: FileIO, found: Journal) -> None:
        self.path = path
        self._journal = journal
        self._found = found
        self._settled = time.monotonic()

    @property
    def lost(self) -> tuple[str, ...]:
        """What to say of each line of the journal that is no measurement."""
        return self._found.lost

    @property
    def has_measurements(self) -> bool:
        """Whether an earlier run has measured something that counts."""
        return any(self._found.parts.values())

    def write(self, name: str, text: str) -> Path:
        """Write a file of the run, whole or not at all."""
        return write_whole(self.path / name, text)

    def note(self, part: str, plan: Plan, reading: Reading, by: str = "") -> None:
        """Append a measurement to the journal. `part` names the items it was made on, `by` what measured it.

        The system has it at once, so that a process may be killed; the disk has it after `SETTLE_SECONDS` at the latest.
        """
        self._append({"part": part, "by": by, "plan": plan_to_json(plan), **vars(reading)})

    def recall(self, part: str, by: Callable[[Plan], str], items: int | None = None) -> dict[Plan, Reading]:
        """Return the readings of a part, of so many items if that is given, that were measured by what measures each plan now.

        Others are forgotten; that is written into the journal, where they stay.
        """
        entries = self._found.parts.get(part, {})
        stale = sorted({entry.by for plan, entry in entries.items() if entry.by != by(plan)})
        if stale:
            self._append({"part": part, "forget": stale})
            self._found.forget(part, stale)
        kept = self._found.parts.get(part, {})
        return {plan: entry.reading for plan, entry in kept.items() if items in (None, len(entry.reading.items))}

    def settle(self) -> None:
        """Wait until the journal is on the disk."""
        with writing(self.path / "journal.jsonl"):
            os.fsync(self._journal.fileno())
        self._settled = time.monotonic()

    def _append(self, data: Mapping[str, Any]) -> None:
        left = memoryview((json.dumps(data) + "\n").encode())
        with writing(self.path / "journal.jsonl"):
            while left:
                left = left[self._journal.write(left) :]
        if time.monotonic() - self._settled > SETTLE_SECONDS:
            self.settle()

    @property
    def sources(self) -> dict[str, str]:
        """The code that measured what an earlier run left here, as its environment has it."""
        path = self.path / "environment.json"
        found = _json_or_empty(path).get("sources") if path.is_file() else None
        return {str(name): str(code) for name, code in found.items()} if isinstance(found, dict) else {}

    def check_same(self, key: Mapping[str, str]) -> None:
        """Raise `PdtrimError` if the measurements in the journal were made with other weights or data."""
        path = self.path / "environment.json"
        if self.has_measurements and path.is_file():
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
    for name in OWN_FOLDERS:
        if (path / name).is_symlink():
            raise PdtrimError(f"{path / name} is a link, and a run writes into its own folder only: {ELSEWHERE}")
    journal_path = path / "journal.jsonl"
    with open_journal(journal_path) as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise PdtrimError(f"another run is working in {path}: wait for it, or choose another folder with --out") from None
        if fresh or (_holds_nothing(path) and _keys_of_other_recipe(path, recipe)):
            journal.truncate(0)
            _clear(path)
        else:
            _refuse_other_recipe(path, recipe)
        write_whole(path / "recipe.toml", tomli_w.dumps(dict(recipe)))
        folder = RunFolder(path, journal, read_journal(journal_path))
        try:
            yield folder
        finally:
            folder.settle()


def _holds_nothing(path: Path) -> bool:
    """Tell whether a run was begun and has left nothing that took time, so that one of another recipe may have the folder."""
    there = [path / name for name in (*OWN_FILES, *OWN_FOLDERS) if name not in BEGINNING]
    return (path / "journal.jsonl").stat().st_size == 0 and not any(map(os.path.lexists, there))


def _clear(path: Path) -> None:
    for name in OWN_FILES:
        if name != "journal.jsonl":
            (path / name).unlink(missing_ok=True)
    for name in OWN_FOLDERS:
        shutil.rmtree(path / name, ignore_errors=True)


def _keys_of_other_recipe(path: Path, recipe: Mapping[str, Any]) -> list[str]:
    """Return the keys in which the recipe of the run in a folder is another one."""
    try:
        before = read_toml(path / "recipe.toml")
    except FileNotFoundError:
        return []
    except UnreadableError as error:
        raise PdtrimError(f"{error}: start anew with --fresh") from None
    now = parse_toml(tomli_w.dumps(dict(recipe)))
    return changed_keys(resolved_recipe_of_1(before, now), now)


def _refuse_other_recipe(path: Path, recipe: Mapping[str, Any]) -> None:
    changed = _keys_of_other_recipe(path, recipe)
    if changed:
        raise PdtrimError(
            f"{path} holds a run of another recipe, which differs in {', '.join(changed)}: start anew with --fresh, or "
            "choose another folder with --out"
        )


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Return the keys in which two resolved recipes differ, those left out that change no measurement."""
    return sorted(_differences(before, now))


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], place: str = "") -> Iterator[str]:
    for key in {*before, *now}:
        old, new = before.get(key), now.get(key)
        if f"{place}{key}" in UNCOMPARED:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            yield from _differences(old, new, f"{place}{key}.")
        elif old != new:
            yield f"{place}{key}"


def _json_or_empty(path: Path) -> dict[str, Any]:
    try:
        data = read_json(path)
    except UnreadableError:
        return {}
    return data if isinstance(data, dict) else {}


def load_outcome(path: Path) -> Outcome:
    """Return the outcome of a finished run. Raises `PdtrimError` for a folder that holds none."""
    refuse_recipe_file(path)
    file = path / "outcome.json"
    if not path.is_dir():
        raise PdtrimError(f"{path} is not a folder: name the folder of a run")
    if not file.is_file():
        begun = (path / "journal.jsonl").is_file()
        hint = "its run has not finished: run its recipe again to go on" if begun else "name the folder of a run"
        raise PdtrimError(f"{path} has no outcome.json: {hint}")
    return Outcome.from_json(_text_of(file), str(file))


def refuse_recipe_file(path: Path) -> None:
    """Raise `PdtrimError` for a recipe where its run is asked."""
    if path.suffix == ".toml" and path.is_file():
        folder = path.parent if path.name == "recipe.toml" and (path.parent / "journal.jsonl").exists() else f"runs/{path.stem}"
        raise PdtrimError(f"{path} is a recipe, and a run is asked for here: name the folder of its run, such as {folder}")


def measured_in(path: Path) -> dict[str, dict[Plan, Reading]]:
    """Return the readings in a run folder's journal, by the part of the items that they were made on."""
    if not (path / "journal.jsonl").is_file():
        raise PdtrimError(f"{path} has no journal.jsonl: name the folder of a run")
    journal = read_journal(path / "journal.jsonl", mend=False)
    for line in journal.lost:
        warnings.warn(line, stacklevel=2)
    return {part: {plan: entry.reading for plan, entry in entries.items()} for part, entries in journal.parts.items()}


def load_plan(path: Path) -> SavedPlan:
    """Return the plan in a run folder or in a plan file. Raises `PdtrimError` for a run that has none, with the reason."""
    refuse_recipe_file(path)
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
