"""An objective over one set of items: values that are checked, the score of their mean, and what a plan can still reach."""

from __future__ import annotations

import math
from collections.abc import Sequence

from pdtrim_core.api.item_kinds import Objective
from pdtrim_core.data.items import Item
from pdtrim_core.data.readings import DIGITS, Reading
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.item_values import item_values
from pdtrim_core.search.stopping import interval


class ObjectiveOnItems:
    """An objective over one set of items: their values, checked, and the score of their mean.

    `label` names the objective in errors.
    """

    def __init__(self, objective: Objective, items: Sequence[Item], label: str) -> None:
        self.items = tuple(items)
        self._objective = objective
        self._label = label
        with blame(label):
            self._weights = [float(objective.weight(item)) for item in items]
        for item, weight in zip(items, self._weights, strict=True):
            if not 0 < weight < math.inf:
                raise PluginError(f"{label} gave the item '{item.name}' a weight of {weight}: it must be above 0 and finite")

    def values(self, staged: StagedModel, group: Sequence[Item]) -> list[float]:
        """Return the values of some items under a plan. Raises `PluginError` for values that cannot be."""
        return item_values(self._objective, self._label, staged, group)

    def ceiling(self, values: Sequence[float | None]) -> float:
        """Return the highest score that a plan can still reach if every open item is as good as an item can be."""
        best = self._objective.best_item
        if best is None:
            return math.inf
        return round(self._score(self._mean([best if value is None else value for value in values])), DIGITS)

    def reading(self, values: Sequence[float]) -> Reading:
        """Return the reading that the values of all items make. Raises `PluginError` for a score out of bounds."""
        mean = self._mean(values)
        step = 1e-4 * max(1.0, abs(mean))
        slope = (self._score(mean + step) - self._score(mean - step)) / (2 * step)
        score = self._score(mean)
        if not 0 <= score <= 100:
            raise PluginError(f"{self._label} gave a score of {score} for a mean of {mean}: scores go from 0 to 100")
        return Reading(score, mean, tuple(values), slope=slope, ceiling=score)

    def score_at(self, values: Sequence[float | None], places: Sequence[int]) -> float:
        """Return the score of the mean over the items at some places, all of which have been measured."""
        weights = [self._weights[place] for place in places]
        return self._score(_mean([_there(values, place) for place in places], weights))

    def short_of_best(self, reading: Reading) -> list[float]:
        """Return by how much each item falls short of the best that there is, by its weight; zeros where there is none."""
        best = self._objective.best_item
        return [
            0.0 if best is None or value is None else weight * abs(best - value)
            for weight, value in zip(self._weights, reading.items, strict=True)
        ]

    def likely_ceiling(self, values: Sequence[float | None], beside: Reading, places: Sequence[int], error: float) -> float:
        """Return the highest score that a plan can be expected to have, by its gains over another at some places.

        It is higher with probability `error` at most, however often it is asked for as items are measured.
        """
        weights = [self._weights[place] for place in places]
        gains = [_there(values, place) - _there(beside.items, place) for place in places]
        base = _mean([_there(beside.items, place) for place in places], weights) if beside.mean is None else beside.mean
        bounds = interval(gains, weights, error, planned=len(values))
        if not math.isfinite(bounds[0]):
            return math.inf
        step = 1e-4 * max(1.0, abs(base))
        below, above = self._score(base - step), self._score(base + step)
        # Only the better bound counts: the other may be a mean that cannot be, of which a score says nothing.
        low, high = (base + bound for bound in bounds)
        means = [low] if below > above else [high] if below < above else [low, high]
        best = self._objective.best_item
        if best is not None and low < best < high:
            means = [best if below != above else mean for mean in means]
        return max(map(self._score, means))

    def _score(self, mean: float) -> float:
        """Return the score of a mean. Raises `PluginError` where the objective has none for it."""
        with blame(self._label):
            return float(self._objective.score(mean))

    def _mean(self, values: Sequence[float]) -> float:
        return _mean(values, self._weights)


def _mean(values: Sequence[float], weights: Sequence[float]) -> float:
    return math.fsum(w * v for w, v in zip(weights, values, strict=True)) / math.fsum(weights)


def _there(values: Sequence[float | None], place: int) -> float:
    value = values[place]
    assert value is not None
    return value
