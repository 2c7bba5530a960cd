"""Asks an event for something that it does not tell."""

from __future__ import annotations

from pdtrim_core import hookimpl


@hookimpl
def pdtrim_note_made(noot: str) -> None:
    """Listen."""
    del noot
