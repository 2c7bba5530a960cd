"""Offers a searcher that takes other arguments than it is given."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Plan, Requests, Searcher, SearchSpace, hookimpl


class Seedless(Searcher):
    """Knows of no rng."""

    name = "seedless"

    def search(self, space: SearchSpace) -> Requests[None]:  # type: ignore[override]
        """Ask once."""
        yield Plan.unified(space.first)


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searcher."""
    yield Seedless
