"""Temporarily overrides names in third-party modules that have no option for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def overridden(module: ModuleType, **values: object) -> Iterator[None]:
    """Give names of a module other values inside the context, and restore the old ones after it.

    Raises `AttributeError` for a name that the module does not have: another version of it would not see the value.
    """
    before = {name: getattr(module, name) for name in values}
    try:
        for name, value in values.items():
            setattr(module, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)
