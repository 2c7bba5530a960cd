"""Measuring a plan: the objective over items, group by group, stopping early once a floor is out of reach."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from pdtrim_core.api.kinds import Objective
from pdtrim_core.data.items import Item
from pdtrim_core.data.readings import DIGITS, Reading
from pdtrim_core.errors import PdtrimError, PluginError, blame
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import Replacements, StagedModel
from pdtrim_core.pipeline.run_cache import Values
from pdtrim_core.plan.plan import Plan


class ObjectiveOnItems:
    """An objective over one set of items: their values, checked, and the score of their mean.

    `label` names the objective in errors.
    """

    def __init__(self, objective: Objective, items: Sequence[Item], label: str) -> None:
        self.items = tuple(items)
        self._objective = objective
        self._label = label
        self._weights = [objective.weight(item) for item in items]

    def values(self, staged: StagedModel, group: Sequence[Item]) -> list[float]:
        """Return the values of some items under a plan. Raises `PluginError` for values that cannot be."""
        try:
            with blame(self._label):
                values = [float(value) for value in self._objective.item_values(staged, group)]
        except PluginError as error:
            if isinstance(error.__cause__, torch.OutOfMemoryError):
                # Not the plugin's fault: the model ran inside it.
                raise error.__cause__ from None
            raise
        if len(values) != len(group):
            raise PluginError(f"{self._label} gave {len(values)} values for {len(group)} items")
        if not all(math.isfinite(value) for value in values):
            raise PluginError(f"{self._label} gave a value that is not finite on the plan {staged.plan}")
        return values

    def ceiling(self, values: Sequence[float | None]) -> float:
        """Return the highest score that a plan can still reach if every open item is as good as an item can be."""
        best = self._objective.best_item
        if best is None:
            return math.inf
        return round(self._objective.score(self._mean([best if value is None else value for value in values])), DIGITS)

    def reading(self, values: Sequence[float]) -> Reading:
        """Return the reading that the values of all items make. Raises `PluginError` for a score out of bounds."""
        mean = self._mean(values)
        step = 1e-4 * max(1.0, abs(mean))
        slope = (self._objective.score(mean + step) - self._objective.score(mean - step)) / (2 * step)
        score = self._objective.score(mean)
        if not 0 <= score <= 100:
            raise PluginError(f"{self._label} gave a score of {score} for a mean of {mean}: scores go from 0 to 100")
        return Reading(score, mean, tuple(values), slope=slope, ceiling=score)

    def _mean(self, values: Sequence[float]) -> float:
        return math.fsum(w * v for w, v in zip(self._weights, values, strict=True)) / math.fsum(self._weights)


class Measurement:
    """The value of a plan on one set of items; this is the `Measure` that a `Ledger` calls.

    `prefix_cache` gives the hidden states that plans share; it is called when something is measured. When memory runs out on
    the device the batch is halved, `note` says so, and measuring goes on. `known` gives the values of items that earlier runs
    have measured under a plan, and takes new ones.
    """

    def __init__(
        self,
        prefix_cache: Callable[[], PrefixCache],
        objective: ObjectiveOnItems,
        *,
        replacements: Replacements | None = None,
        early_stop: bool = True,
        note: Callable[[str], None] = lambda text: None,
        known: Callable[[Plan], Values] = lambda plan: {},
    ) -> None:
        self._prefix_cache = prefix_cache
        self._objective = objective
        self._replacements = dict(replacements or {})
        self._early_stop = early_stop
        self._note = note
        self._known = known

    @property
    def items(self) -> tuple[Item, ...]:
        """The items that are measured."""
        return self._objective.items

    def __call__(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        """Return the plan's reading; go on from one that was cut short."""
        while True:
            try:
                return self._measure(plan, floor if self._early_stop else None, started)
            except torch.OutOfMemoryError:
                if self._prefix_cache().batch_tokens < 2:
                    raise PdtrimError("the device has no memory left, even for the smallest batch") from None
                self._prefix_cache().halve_batches()
                self._note(f"out of memory on the device: going on with batches of {self._prefix_cache().batch_tokens} tokens")

    def _measure(self, plan: Plan, floor: float | None, started: Reading | None) -> Reading:
        items = self._objective.items
        staged = StagedModel(self._prefix_cache(), plan, self._replacements)
        place = {item: number for number, item in enumerate(items)}
        values: list[float | None] = list(started.items) if started and started.items else [None] * len(items)
        for group in self._prefix_cache().groups(items):
            ceiling = self._objective.ceiling(values)
            if floor is not None and ceiling < floor:
                return Reading(None, None, tuple(values), ceiling=ceiling)
            if all(values[place[item]] is not None for item in group):
                continue
            for item, value in zip(group, self._values_of(staged, group), strict=True):
                values[place[item]] = value
        return self._objective.reading([value for value in values if value is not None])

    def _values_of(self, staged: StagedModel, group: Sequence[Item]) -> list[float]:
        known = self._known(staged.plan)
        if not all((staged.plan, item) in known for item in group):
            known.update(zip([(staged.plan, item) for item in group], self._objective.values(staged, group), strict=True))
        return [known[staged.plan, item] for item in group]
