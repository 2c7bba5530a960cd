"""Wraps a hook of every sort, and fails each time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pdtrim_core import hookimpl


@hookimpl(wrapper=True)
def pdtrim_scorers() -> Generator[None, Any, Any]:
    """Forget what was offered, and fail."""
    yield
    raise ZeroDivisionError("division by zero")


@hookimpl(wrapper=True, tryfirst=True)
def pdtrim_find_blocks(model: object) -> Generator[None, Any, Any]:
    """Fail before anybody is asked."""
    raise LookupError(type(model).__name__)
    yield


@hookimpl(wrapper=True)
def pdtrim_step_started() -> Generator[None, Any, Any]:
    """Go on for too long."""
    yield
    yield
