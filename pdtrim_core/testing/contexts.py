"""Contexts made by hand, for tests of a pruner without a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from pdtrim_core.api.prune_context import PruneContext
from pdtrim_core.execution.prefix_cache import ExecutionOptions
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.losses import losses_of


def prune_context(
    model: BlockModel,
    sequences: Sequence[Sequence[int]],
    *,
    blocks: int,
    parameters: int,
    note: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> PruneContext:
    """Return the context of a pruner on a model and token sequences, with losses that are measured and kept nowhere.

    `options` are other fields of `PruneContext`; without an `rng` there is one with seed 0.
    """
    losses = losses_of(model, ExecutionOptions(batch_tokens=options.get("batch_tokens")), note=note)
    given = {"rng": Random(0), "losses": losses, **options}  # noqa: S311 - reproducible draws, nothing secret
    return PruneContext(model, sequences, blocks, parameters, note=note, **given)
