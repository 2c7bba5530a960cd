"""Has a hook that forgets to return."""

from __future__ import annotations

from pdtrim_core import hookimpl


@hookimpl
def pdtrim_scorers() -> None:
    """Return nothing."""
