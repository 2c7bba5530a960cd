"""Listens to notes and steps, and cannot bear them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pdtrim_core import hookimpl

heard: list[str] = []


@hookimpl
def pdtrim_note_made(note: str) -> None:
    """Write it down and fail."""
    heard.append(note)
    raise ValueError("too loud")


@hookimpl
def pdtrim_run_started(recipe: Mapping[str, Any], out: Path) -> None:
    """Write it down."""
    del recipe
    heard.append(str(out))


@hookimpl
def pdtrim_step_finished(step: str) -> None:
    """Fail where no note is made: every run finishes a step."""
    heard.append(step)
    raise ValueError("too late")
