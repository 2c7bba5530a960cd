"""The values that an objective gives some items under a plan, checked."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from pdtrim_core.api.item_kinds import Objective
from pdtrim_core.data.items import Item
from pdtrim_core.errors import PluginError, blame
from pdtrim_core.execution.staged_model import StagedModel


def item_values(objective: Objective, label: str, staged: StagedModel, group: Sequence[Item]) -> list[float]:
    """Return the values of items under a plan; `label` names the objective. Raises `PluginError` for values that cannot be."""
    try:
        with blame(label):
            values = [float(value) for value in objective.item_values(staged, group)]
    except PluginError as error:
        if isinstance(error.__cause__, torch.OutOfMemoryError):
            # Not the plugin's fault: the model ran inside it.
            raise error.__cause__ from None
        raise
    if len(values) != len(group):
        raise PluginError(f"{label} gave {len(values)} values for {len(group)} items")
    if not all(math.isfinite(value) for value in values):
        raise PluginError(f"{label} gave a value that is not finite on the plan {staged.plan}")
    return values
