"""Files and folders that are whole or not there, whoever else writes them at the same time.

What is written stands beside its final name first, under a name that nobody else has: the final name and a random part. Its
writer holds a lock on it, so that what a killed writer left can be told from what another one is working on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.files.paths import PathLike

LONGEST_NAME = 200
"""Bytes of a final name that go into a name beside it; file systems take 255 for the whole."""

KEPT = "what was measured before is kept: mend this and run the same command again"
"""What to do where a run cannot write."""


def write_whole(path: PathLike, content: str | bytes) -> Path:
    """Write a file beside its name and move it into place. Raises `PdtrimError` naming the file and the reason.

    Of several writers at once the last one counts; no reader sees a part of a file. A link at the final name is replaced, not
    followed.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    with writing(path), _beside(path, _new_file) as (beside, descriptor):
        with open(descriptor, "wb", closefd=False) as file:
            file.write(data)
        os.fsync(descriptor)
        beside.replace(path)
        _settle(path.parent)
    return path


@contextmanager
def whole_folder(path: PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `path`; at the end it is renamed to `path`, and replaces what was there.

    Until then a folder that was there stays as it is, and so it does after an error. Of several writers at once the last one
    counts. Raises `PdtrimError` naming the folder and the reason where the system refuses to write.
    """
    path = Path(path)
    with writing(path):
        _make_folder(path.parent)
        with _only_one(path.parent):
            _bring_back(path)
        with _beside(path, _new_folder) as (beside, _):
            yield beside
            for file in beside.rglob("*"):
                if file.is_file() and not file.is_symlink():
                    _settle(file)
            _settle(beside)
            with _only_one(path.parent):
                _bring_back(path)
                before = _before(path)
                if path.exists() or path.is_symlink():
                    path.replace(before)
                beside.replace(path)
                _remove(before)
            _settle(path.parent)


@contextmanager
def alone(path: PathLike, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Let one process at a time make what lies at `path`; others wait here, after `waiting` was called.

    Raises `PdtrimError` where the system refuses to make the lock file, which is gone afterwards.
    """
    path = Path(path)
    lock = path.with_name(f".{_short(path.name)}.lock")
    with writing(path):
        _make_folder(path.parent)
        descriptor = _locked(lock, waiting)
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        os.close(descriptor)


def _locked(lock: Path, waiting: Callable[[], None]) -> int:
    """Return the descriptor of a lock file that this process alone holds."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting()
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        except BaseException:
            os.close(descriptor)
            raise
        if _is_at(lock, descriptor):
            return descriptor
        # The one before has taken the file away, so another one may hold its successor.
        os.close(descriptor)


@contextmanager
def _beside(path: Path, new: Callable[[Path], int]) -> Iterator[tuple[Path, int]]:
    """Yield the path of something new beside `path`, and its descriptor; what is left of it at the end is removed."""
    _remove_leftovers(path)
    beside, descriptor = _own(path, new)
    try:
        yield beside, descriptor
    finally:
        _remove(beside)
        os.close(descriptor)


def _own(path: Path, new: Callable[[Path], int]) -> tuple[Path, int]:
    while True:
        beside = path.with_name(f".{_short(path.name)}.{secrets.token_hex(4)}.part")
        try:
            descriptor = new(beside)
        except FileExistsError:
            continue
        # Where a file system has no locks, what killed writers leave stays there.
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if _is_at(beside, descriptor):
            return beside, descriptor
        # Another writer took it for a leftover before it was locked.
        os.close(descriptor)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)) from None


def _new_file(path: Path) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)


def _new_folder(path: Path) -> int:
    path.mkdir()
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        # Another writer took it for a leftover before it was locked: another name is tried, as for one that is taken.
        raise FileExistsError from None


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether a path leads to what a descriptor has open."""
    try:
        return os.path.samestat(path.lstat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left beside it: whatever has such a name and is locked by nobody."""
    start, end = f".{_short(path.name)}.", ".part"
    for beside in path.parent.iterdir():
        if not (beside.name.startswith(start) and beside.name.endswith(end)):
            continue
        with suppress(OSError):
            descriptor = os.open(beside, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(beside)
            finally:
                os.close(descriptor)


def _bring_back(path: Path) -> None:
    """Undo what a writer that was killed between its two renames left: the folder of before takes its name again."""
    before = _before(path)
    if before.exists() and not path.exists():
        before.replace(path)
    _remove(before)


def _before(path: Path) -> Path:
    return path.with_name(f".{_short(path.name)}.before")


@contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Let one process at a time rename folders in a folder."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _short(name: str) -> str:
    return name.encode(errors="surrogateescape")[:LONGEST_NAME].decode(errors="ignore")


def _settle(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def writing(path: Path, advice: str = KEPT) -> Iterator[None]:
    """Turn the system's refusal to write into a `PdtrimError` that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or reason_of(error)
        raise PdtrimError(f"cannot write {path}: {reason}; {advice}") from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/pdtrim-core, or ~/.cache/pdtrim-core."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdtrim-core"
