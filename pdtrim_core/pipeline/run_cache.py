"""What runs that follow each other have in common: the model, what was made with it, and values that were measured."""

from __future__ import annotations

import gc
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

from pdtrim_core.data.items import Item
from pdtrim_core.plan.plan import Plan

T = TypeVar("T")

Key = tuple[str, ...]
"""What a thing was made from, in the order of making: a thing's key begins with the keys of what it needs."""
Values = MutableMapping[tuple[Plan, Item], float]
"""The value of an item under a plan, in the objective's own unit."""


class RunCache:
    """The latest model, calibration, scores and prefix cache, and the values of items, for the next run that can use them.

    Only one thing of a sort is held, and what was made from one goes with it, so that two models are never in memory. What a
    run finds here is what it would have computed itself: it gives the same plan, outcome and journal, in less time.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Key, Any]] = {}
        self._values: dict[Key, dict[tuple[Plan, Item], float]] = {}
        self.trained: set[str] = set()
        """Keys of the merges that these runs have trained anew."""

    def latest(self, sort: str, key: Key, make: Callable[[], T]) -> T:
        """Return the thing of a sort that was made last if its key is this one; else make it, after letting go of the last."""
        if sort in self._held:
            before, thing = self._held[sort]
            if before == key:
                found: T = thing
                return found
            del thing
            self._held = {name: held for name, held in self._held.items() if held[0][: len(before)] != before}
            # The first import of a model's family leaves the frames that led to it in a circle, with all that a run had in them.
            # Python comes to it some day, and knows nothing of gigabytes.
            gc.collect()
        made = make()
        self._held[sort] = (key, made)
        return made

    def values(self, key: Key) -> Values:
        """Return the values measured under a key, to read and to add to."""
        return self._values.setdefault(key, {})
