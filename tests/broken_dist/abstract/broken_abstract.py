"""Offers a class that lacks its method."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Scorer, hookimpl


class Hollow(Scorer):
    """A scorer that cannot score."""

    name = "hollow"


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Yield the scorers."""
    yield Hollow
