"""The converted copy of a GGUF file: made once, kept in the user's cache, made again where it is damaged."""

from __future__ import annotations

import shutil
import warnings
from contextlib import suppress
from importlib import metadata
from math import prod
from pathlib import Path

from pdtrim_core.api import (
    MANIFEST,
    LoadedModel,
    ModelSource,
    PdtrimError,
    alone,
    cache_folder,
    damaged,
    reason_of,
    whole_folder,
    write_manifest,
)
from pdtrim_plugins.model_sources.gguf_model import read_gguf
from pdtrim_plugins.model_sources.gguf_table import table_of
from pdtrim_plugins.model_sources.opening import quietly
from pdtrim_plugins.model_sources.reading import load

CONVERSION = 1
"""What a file is converted by, besides transformers; raised with whatever changes a copy."""
EVERY_COPY = ("config.json", "tokenizer.json", "*.safetensors")
"""Files that no converted copy is without."""


def copy_of(digest: str, dtype: str) -> Path:
    """Return the path of the converted copy of the GGUF file with a SHA-256 in a number format, whether it exists or not.

    Another release of transformers may read the same file differently, so each has a copy of its own.
    """
    of = "" if (kept := _kept_in(dtype)) == "float32" else f"-{kept}"
    return cache_folder() / "models" / f"{digest}-{CONVERSION}-{metadata.version('transformers')}{of}"


def open_copy(file: Path, copy: Path, source: ModelSource) -> LoadedModel:
    """Load the converted copy of a GGUF file for a source, which says the name, the number format and the place.

    The copy's checksums are compared every time; a damaged one is made again, with a warning.
    """
    if damage_of(copy):
        try:
            with alone(copy):
                _mend(file, copy, source)
        except PdtrimError as error:
            if isinstance(error.__cause__, OSError):
                raise PdtrimError(_cannot_write(copy, error)) from error
            raise
    return load(str(copy), source.path, source.dtype, source.placement, source.tell)


def _kept_in(dtype: str) -> str:
    """Return the number format of the copy that is opened in a format: that one, so that no larger one is written or read."""
    return "float32" if dtype == "auto" else dtype


def told_before(file: Path, copy: Path, source: ModelSource) -> str:
    """Return what is said before a copy is made: that it happens once, how large the copy is, where it is kept."""
    if copy.exists():
        return ""
    size = ""
    with suppress(ValueError):  # whoever opens the file says what is wrong
        each = 4 if _kept_in(source.dtype) == "float32" else 2
        size = f" (about {-(-each * sum(map(prod, table_of(file).shapes.values())) // 10**6)} MB)"
    return f"{source.path}: converted once{size}, and kept in {copy}"


def _mend(file: Path, copy: Path, source: ModelSource) -> None:
    """Make the converted copy of a GGUF file unless another process has done so meanwhile; say so where one is damaged."""
    wrong = damage_of(copy)
    if not wrong:
        return
    for left in copy.parent.glob(".part-*"):
        # Version 0.1 wrote into folders of these names, and left them there when it was killed.
        shutil.rmtree(left, ignore_errors=True)
    before = copy.exists()
    _convert(file, copy, source)
    if before:
        why = "had no checksums" if wrong == [MANIFEST] else f"was damaged ({', '.join(wrong)})"
        warnings.warn(f"{source.path}: the converted copy {copy} {why} and was made again", stacklevel=3)


def damage_of(copy: Path) -> list[str]:
    """Return the files of a converted copy that are not as they were written, or that every copy has and this one lacks."""
    return damaged(copy) or [name for name in EVERY_COPY if not any(copy.glob(name))]


def _convert(file: Path, copy: Path, source: ModelSource) -> None:
    """Write a GGUF file as a transformers checkpoint with its checksums, whole or not at all."""
    model, tokenizer = read_gguf(file, source.path, _kept_in(source.dtype), source.tell)
    with quietly() as heard:
        try:
            with whole_folder(copy) as folder:
                model.save_pretrained(folder)
                tokenizer.save_pretrained(folder)
                write_manifest(folder)
        except Exception as error:
            # safetensors and tokenizers each have an error of their own for a full disk.
            message = _cannot_write(copy, error)
            said = heard.beside(message)
            raise PdtrimError(f"{message}{f'; it said before: {said}' if said else ''}") from error


def _cannot_write(copy: Path, error: Exception) -> str:
    cause = error.__cause__ if isinstance(error, PdtrimError) and error.__cause__ is not None else error
    reason = getattr(cause, "strerror", None) or reason_of(cause)
    return f"cannot write the converted model to {copy}: {reason}; set XDG_CACHE_HOME to another place"
