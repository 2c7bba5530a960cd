"""Whether the workers of a run see the folders that they are to read and write."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from pathlib import Path

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import writing
from pdtrim_core.pipeline.executor import Executor
from pdtrim_core.pipeline.run_cache import RunCache


def check_read(executor: Executor, folders: Iterable[Path]) -> None:
    """Raise `PdtrimError` for a folder whose files a worker does not see as this process does."""
    for folder in folders:
        here = _contents(folder)
        if any(future.result() != here for future in executor.everywhere(_contents_in_worker, str(folder))):
            raise PdtrimError(f"a worker does not see what is in {folder}: put it where all machines of the cluster see it")


def check_shared(executor: Executor, folder: Path) -> None:
    """Raise `PdtrimError` for a folder that the workers are to write to, and that is not the same one for all of them."""
    probe = folder / f".seen-{uuid.uuid4().hex}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_text("")
    try:
        check_read(executor, [folder])
    finally:
        probe.unlink(missing_ok=True)


def _contents_in_worker(cache: RunCache, folder: str) -> str:
    del cache
    return _contents(Path(folder))


def _contents(folder: Path) -> str:
    """Return a hash of the names and sizes of a folder's files; empty where there is no such folder."""
    if not folder.is_dir():
        return ""
    found = sorted(f"{file.name} {file.stat().st_size if file.is_file() else ''}" for file in folder.iterdir())
    return hashlib.sha256("\n".join(found).encode()).hexdigest()
