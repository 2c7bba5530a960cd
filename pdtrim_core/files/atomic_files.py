"""Files and folders that are whole or not there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.paths import PathLike


def write_whole(path: PathLike, content: str | bytes) -> Path:
    """Write a file beside its name and move it into place. Raises `PdtrimError` naming the file and the reason."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.part")
    with writing(path):
        try:
            with beside.open("wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
    return path


@contextmanager
def whole_folder(path: PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `path`; at the end it is renamed to `path`, and replaces what was there.

    Until then a folder that was there stays as it is, and so it does after an error. Raises `PdtrimError` naming the folder
    and the reason where the system refuses to write.
    """
    path = Path(path)
    beside, before = path.with_name(f".{path.name}.part"), path.with_name(f".{path.name}.before")
    with writing(path):
        if before.exists() and not path.exists():
            # An earlier export was killed between its two renames.
            before.replace(path)
        for left in (beside, before):
            shutil.rmtree(left, ignore_errors=True)
        beside.mkdir(parents=True)
        try:
            yield beside
            _settle(beside)
            if path.exists():
                path.replace(before)
            beside.replace(path)
        finally:
            shutil.rmtree(beside, ignore_errors=True)
        shutil.rmtree(before, ignore_errors=True)


def _settle(folder: Path) -> None:
    """Wait until the files of a folder are on the disk."""
    for file in [*(path for path in folder.rglob("*") if path.is_file()), folder]:
        opened = os.open(file, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a `PdtrimError` that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        raise PdtrimError(
            f"cannot write {path}: {error.strerror or error}; what was measured before is kept: mend this and run the same "
            "command again"
        ) from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/pdtrim-core, or ~/.cache/pdtrim-core."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdtrim-core"
