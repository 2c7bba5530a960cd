"""What runs and the cache take up on disk, and how to be rid of it. Nothing else is ever deleted."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Literal

from pdtrim_core.errors import PdtrimError, did_you_mean, reason_of
from pdtrim_core.files.atomic_files import cache_folder
from pdtrim_core.files.reading import UnreadableError, read_toml
from pdtrim_core.results.run_folder import OWN_FILES, OWN_FOLDERS
from pdtrim_core.wording import shortened

MARKS = ("recipe.toml", "journal.jsonl")
"""The files that make a folder one of a run: both are there from its first moment on."""
State = Literal["finished", "unfinished", "working"]


@dataclass(frozen=True)
class StoredRun:
    """A run folder: how far the run came, the model, bytes on disk, the day of its last change, and what else lies in it."""

    path: Path
    state: State
    model: str
    size: int
    changed: str
    besides: tuple[str, ...]


@dataclass(frozen=True)
class Cached:
    """A part of the cache: its name, the number of files, and bytes on disk."""

    name: str
    files: int
    size: int


def find_runs(places: Iterable[Path]) -> list[StoredRun]:
    """Return the run folders at some places and below them, in the order of their paths, each once.

    Raises `PdtrimError` for a place that is no folder. Links and hidden folders are not followed.
    """
    found: dict[Path, StoredRun] = {}
    for place in places:
        if not place.is_dir():
            raise PdtrimError(f"{place} is not a folder: name a run, or a folder with runs below it")
        for path in _run_folders(place):
            found.setdefault(path.resolve(), _stored(path))
    return sorted(found.values(), key=lambda run: run.path)


def _run_folders(place: Path) -> Iterator[Path]:
    for here, folders, files in os.walk(place):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if set(MARKS) <= set(files) and all(Path(here, mark).is_file() for mark in MARKS):
            folders[:] = [name for name in folders if name not in OWN_FOLDERS]
            yield Path(here)


def _stored(path: Path) -> StoredRun:
    changed = max((path / name).stat().st_mtime for name in OWN_FILES if (path / name).exists())
    state: State = "finished" if (path / "outcome.json").is_file() else "unfinished"
    besides = sorted(entry.name for entry in path.iterdir() if entry.name not in (*OWN_FILES, *OWN_FOLDERS))
    day = datetime.fromtimestamp(changed).astimezone().date().isoformat()
    return StoredRun(path, "working" if _in_use(path) else state, _model_of(path), size_of(path), day, tuple(besides))


def _in_use(path: Path) -> bool:
    """Tell whether a run is working in a folder now: it holds a lock on its journal."""
    with (path / "journal.jsonl").open("rb") as journal:
        try:
            fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def _model_of(path: Path) -> str:
    try:
        return shortened(str(read_toml(path / "recipe.toml")["model"]["path"]))
    except (UnreadableError, KeyError, TypeError):
        return "?"


def size_of(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links count nothing."""
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(size_of(entry) for entry in path.iterdir()) if path.is_dir() else 0


def why_not(run: StoredRun) -> str | None:
    """Return why a run folder must not be deleted; None where it may."""
    real = run.path.resolve()
    if run.state == "working":
        return "a run is working in it"
    if run.path.is_symlink():
        return "it is a link"
    if Path.cwd().is_relative_to(real) or Path.home().is_relative_to(real):
        return "it holds the folder that you are in, or your home"
    if (run.path / ".git").exists():
        return "it is a checkout"
    if len(list(_run_folders(run.path))) > 1:
        return "other runs lie below it"
    return _read_only(run.path)


def _read_only(path: Path) -> str | None:
    """Return why an entry cannot be deleted by this user; None where it can."""
    locked = _locked(path)
    return None if locked is None else f"{locked} is read-only for you, so that nothing in it can go"


def _locked(path: Path) -> Path | None:
    """Return the first folder, of that of an entry and all folders in it, that nothing may be deleted from."""
    for here in (path.parent, *([path] if path.is_dir() and not path.is_symlink() else [])):
        if not os.access(here, os.W_OK | os.X_OK):
            return here
    for parent, folders, _ in os.walk(path):
        for name in folders:
            inner = Path(parent, name)
            if not inner.is_symlink() and not os.access(inner, os.R_OK | os.W_OK | os.X_OK):
                return inner
    return None


def remove_run(run: StoredRun) -> None:
    """Delete a run folder with all that is in it. Raises `PdtrimError` for one that must stay, with the reason.

    What marks it as a run goes last, so that a deletion that was interrupted can be taken up again.
    """
    reason = why_not(run)
    if reason:
        raise PdtrimError(f"{run.path} stays: {reason}")
    with _deleting(run.path):
        for entry in sorted(run.path.iterdir(), key=lambda entry: entry.name in MARKS):
            _remove(entry)
        run.path.rmdir()


def find_cached() -> list[Cached]:
    """Return the parts of the cache, in the order of their names."""
    folder = cache_folder()
    parts = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Cached(part.name, sum(1 for file in part.rglob("*") if file.is_file()) or 1, size_of(part)) for part in parts]


def chosen(cached: Iterable[Cached], names: Iterable[str]) -> list[Cached]:
    """Return the parts with these names; all without a name. Raises `PdtrimError` for a name that no part has."""
    by_name, wanted = {part.name: part for part in cached}, list(names)
    for name in wanted:
        if name not in by_name:
            raise PdtrimError(f"the cache has no part '{name}'{did_you_mean(name, by_name)}")
    return [by_name[name] for name in wanted or by_name]


def remove_cached(part: Cached) -> None:
    """Delete a part of the cache; it is made again when it is needed. Raises `PdtrimError` where not all of it may be deleted."""
    path = cache_folder() / part.name
    reason = _read_only(path)
    if reason:
        raise PdtrimError(f"{path} stays: {reason}")
    with _deleting(path):
        _remove(path)


@contextmanager
def _deleting(path: Path) -> Iterator[None]:
    """Turn the system's refusal to delete into a `PdtrimError` that says what is gone and what to do."""
    try:
        yield
    except OSError as error:
        raise PdtrimError(
            f"cannot delete {error.filename or path}: {error.strerror or reason_of(error)}; some of {path} is gone already: mend "
            "this and run the same command again"
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
