"""Searchers: what decode loses."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Searcher, hookimpl
from pdtrim_plugins.searchers.annealing import Annealing, Restarts
from pdtrim_plugins.searchers.exhaustive import Exhaustive
from pdtrim_plugins.searchers.joint import Joint
from pdtrim_plugins.searchers.one_shot import Greedy, RandomChoice
from pdtrim_plugins.searchers.stepwise import Beam, Sequential

__all__ = ["Annealing", "Beam", "Exhaustive", "Greedy", "Joint", "RandomChoice", "Restarts", "Sequential"]


@hookimpl
def pdtrim_searchers() -> Iterable[type[Searcher]]:
    """Yield the searchers."""
    yield from (Annealing, Greedy, RandomChoice, Sequential, Beam, Exhaustive, Restarts, Joint)
