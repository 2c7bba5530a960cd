"""Checksums of a folder's files, kept beside them, so that a bit that flips on the disk is noticed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

from pdtrim_core.files.atomic_files import write_whole
from pdtrim_core.files.paths import PathLike
from pdtrim_core.files.reading import UnreadableError, read_json

MANIFEST = "sha256.json"
"""The file that has the SHA-256 of all others, by their paths in the folder."""


def sha256_of(file: PathLike) -> str:
    """Return the SHA-256 of a file."""
    with Path(file).open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def write_manifest(folder: PathLike) -> Path:
    """Write the checksums of all files of a folder; return the file that has them."""
    folder = Path(folder)
    sums = {name: sha256_of(folder / name) for name in _files(folder)}
    return write_whole(folder / MANIFEST, json.dumps(sums, indent=1, sort_keys=True) + "\n")


def damaged(folder: PathLike, only: Iterable[str] | None = None) -> list[str]:
    """Return the files of a folder that are not as its checksums say: changed, gone, or not there before.

    With `only`, no others are read. A folder without readable checksums, or with none of any file, has one:
    those themselves.
    """
    folder = Path(folder)
    try:
        sums = read_json(folder / MANIFEST)
    except (FileNotFoundError, UnreadableError):
        return [MANIFEST]
    if not isinstance(sums, dict) or not sums:
        return [MANIFEST]
    expected = {name: str(digest) for name, digest in sums.items()}
    present = set(_files(folder))
    names = {*expected, *present} if only is None else set(only)
    return sorted(name for name in names if name not in present or _digest(folder / name) != expected.get(name))


def _digest(file: Path) -> str:
    """Return the SHA-256 of a file; nothing for one that the disk does not give."""
    try:
        return sha256_of(file)
    except OSError:
        return ""


def _files(folder: Path) -> list[str]:
    return sorted(
        file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file() and file != folder / MANIFEST
    )
