"""Paths as people give them: a text, or anything that stands for a path."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

PathLike = str | os.PathLike[str]
"""What a public function takes for a path; it makes a `Path` of it first."""


def as_text(data: Any) -> Any:
    """Return data with paths in it, at any depth of tables and lists, as texts, which is what files and options hold."""
    if isinstance(data, os.PathLike):
        return os.fspath(data)
    if isinstance(data, Mapping):
        return {key: as_text(value) for key, value in data.items()}
    if type(data) in (list, tuple):
        return type(data)(as_text(value) for value in data)
    return data
