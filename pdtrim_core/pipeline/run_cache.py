"""What runs that follow each other have in common: the model, what was made with it, and values that were measured."""

from __future__ import annotations

import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pdtrim_core.data.items import Item
from pdtrim_core.plan.elements import Merge, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe

T = TypeVar("T")

Key = tuple[str, ...]
"""What a thing was made from, in the order of making: a thing's key begins with the keys of what it needs."""
Values = MutableMapping[tuple[Plan, Item], float]
"""The value of an item under a plan, in the objective's own unit."""


class RunCache:
    """The latest model, calibration, scores and prefix cache, and the values of items, for the next run that can use them.

    Only one thing of a sort is held, and what was made from one goes with it, so that two models are never in memory. What a
    run finds here is what it would have computed alone: it gives the same plan, outcome and journal, in less time.
    """

    def __init__(self) -> None:
        self._held: dict[str, tuple[Key, Any]] = {}
        self._values: dict[Key, dict[tuple[Plan, Item], float]] = {}

    def latest(self, sort: str, key: Key, make: Callable[[], T]) -> T:
        """Return the thing of a sort that was made last if its key is this one; else make it, after letting go of the last."""
        if sort in self._held:
            before, thing = self._held[sort]
            if before == key:
                found: T = thing
                return found
            del thing
            self._held = {name: held for name, held in self._held.items() if held[0][: len(before)] != before}
        made = make()
        self._held[sort] = (key, made)
        return made

    def values(self, key: Key) -> Values:
        """Return the values measured under a key, to read and to add to."""
        return self._values.setdefault(key, {})


@dataclass(frozen=True)
class Keys:
    """The keys of a recipe: what each of its parts depends on, and on nothing else."""

    model: Key
    calibration: Key
    scores: Key
    prefix_cache: Key

    @property
    def order(self) -> tuple[Key, Key, Key, Key]:
        """By which to order recipes so that those that share most are neighbours."""
        return self.model, self.calibration, self.prefix_cache, self.scores


def keys_of(recipe: Recipe) -> Keys:
    """Return the keys of a recipe."""
    data = recipe.to_data()
    evaluation = recipe.settings.evaluation
    model = (_text("model", data["model"]),)
    calibration = (*model, _text("calibration", [data["calibration"], recipe.settings.seed]))
    # Batches and threads decide about the last digits, so that a run is the same to the last one only with the same of both.
    threads, batch_tokens = evaluation.threads, evaluation.batch_tokens
    scores = (*calibration, _text("scores", [data.get("scorer"), threads, batch_tokens]))
    switches = [
        evaluation.pack_rows,
        evaluation.share_tokens,
        evaluation.reuse_plans,
        evaluation.cache_budget,
        evaluation.compile,
    ]
    packing = [evaluation.first_token, batch_tokens, *switches, threads]
    return Keys(model, calibration, scores, (*calibration, _text("prefix cache", packing)))


def values_keys(recipe: Recipe, *, weights: str, data: str, training: str) -> Callable[[Plan], Key]:
    """Return the function that gives the key of a plan's values.

    `weights`, `data` and `training` are digests. How merged blocks were trained matters to plans that have some.
    """
    parts = recipe.to_data()
    plain = (*keys_of(recipe).prefix_cache, _text("objective", parts["objective"]), weights, data)
    trained = (*plain, _text("distiller", parts["distiller"]), training)

    def key(plan: Plan) -> Key:
        return trained if any(isinstance(element, Merge | Shrink) for element in plan.decode) else plain

    return key


def _text(sort: str, data: Any) -> str:
    return f"{sort} {json.dumps(data, sort_keys=True)}"
