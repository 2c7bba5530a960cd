"""Has a hook that raises, and one that works."""

from __future__ import annotations

from collections.abc import Iterable
from random import Random

from pdtrim_core.api import Plan, Requests, Scorer, Searcher, SearchSpace, hookimpl


class Patient(Searcher):
    """Asks for the first removal alone."""

    name = "patient"

    def search(self, space: SearchSpace, rng: Random) -> Requests[None]:
        """Ask once."""
        del rng
        yield Plan.unified(space.first)


@hookimpl
def pdtrim_scorers() -> Iterable[type[Scorer]]:
    """Fail."""
    raise ZeroDivisionError("division by zero")


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searcher."""
    yield Patient
