"""Fails at every question that it is asked."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from pdtrim_core.api import LoadedModel, ModelSource, hookimpl


class Picky(ModelSource):
    """Cannot even tell whether a path is meant for it."""

    name = "picky"

    @classmethod
    def accepts(cls, path: str) -> bool:
        """Look too far."""
        return bool(path[999])

    def open(self) -> LoadedModel:
        """Never get here."""
        raise NotImplementedError

    def open_config(self) -> Any:
        """Never get here."""
        raise NotImplementedError


@hookimpl
def pdtrim_model_sources() -> Iterable[type[ModelSource]]:
    """Yield the source."""
    yield Picky


@hookimpl
def pdtrim_find_blocks(model: object) -> NoReturn:
    """Fail."""
    raise LookupError(type(model).__name__)
