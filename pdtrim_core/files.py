"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdtrim_core.errors import PdtrimError


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write a file beside its name and move it into place. Raises `PdtrimError` naming the file and the reason."""
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
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a `PdtrimError` that names the file and says what to do."""
    try:
        yield
    except OSError as error:
        raise PdtrimError(
            f"cannot write {path}: {error.strerror}; what was measured before is kept: mend this and run the same command again"
        ) from error


def cache_folder() -> Path:
    """Return the folder for what can be made again: $XDG_CACHE_HOME/pdtrim-core, or ~/.cache/pdtrim-core."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdtrim-core"
