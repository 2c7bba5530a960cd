"""Names in modules of other people that stand for something else for a while, where those have no switch of their own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType


@contextmanager
def overridden(module: ModuleType, **values: object) -> Iterator[None]:
    """Let names of a module stand for other values, and put back what they stood for before.

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
