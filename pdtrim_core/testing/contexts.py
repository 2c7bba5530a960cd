"""Contexts made by hand, for tests of a pruner, a recovery or a selector of K/V without a run."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any
from uuid import uuid4

from torch import nn

from pdtrim_core.api.prune_context import PruneContext
from pdtrim_core.api.recovery_context import RecoveryContext
from pdtrim_core.api.selection_context import SelectionContext
from pdtrim_core.data.items import Item
from pdtrim_core.execution.prefix_cache import ExecutionOptions
from pdtrim_core.execution.sampling import sampled
from pdtrim_core.execution.walked import Walked
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.losses import losses_of
from pdtrim_core.plan.plan import FirstToken, Plan


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

    The texts that it writes go on from the first token of each sequence in turn, and are as long as the longest sequence.
    `options` are other fields of `PruneContext`; without an `rng` there is one with seed 0.
    """
    losses = losses_of(model, ExecutionOptions(batch_tokens=options.get("batch_tokens")), note=note)
    length = max(2, *map(len, sequences))

    def write(count: int) -> list[tuple[int, ...]]:
        return sampled(model, [sequences[number % len(sequences)][:1] for number in range(count)], length, seed=0)

    given = {"rng": Random(0), "losses": losses, "write": write, **options}  # noqa: S311 - reproducible draws, nothing secret
    return PruneContext(model, sequences, blocks, parameters, note=note, **given)


def recovery_context(
    model: BlockModel,
    plan: Plan,
    texts: Sequence[Sequence[int]],
    *,
    check: Sequence[Sequence[int]] = (),
    modules: Mapping[Any, nn.Module] | None = None,
    first_token: FirstToken = "decode",
    **options: Any,
) -> RecoveryContext:
    """Return the context of a recovery on a model under a plan, with token sequences to learn from and others to check with.

    The first half of each sequence is its prompt. `modules` are those of the plan's elements, such as merged blocks. `options`
    are other fields of `RecoveryContext`; without an `rng` there is one with seed 0, and a `folder` is named but not made.
    """
    items = [_in_halves(number, text) for number, text in enumerate((*texts, *check))]
    pair = Walked(model, plan, dict(modules or {}), items[: len(texts)], first_token=first_token)
    folder = Path(tempfile.gettempdir()) / f"recovery-{uuid4().hex}"
    given = {"rng": Random(0), "folder": folder, **options}  # noqa: S311 - reproducible draws, nothing secret
    return RecoveryContext(pair, items[len(texts) :], **given)


def selection_context(
    model: BlockModel,
    plan: Plan,
    texts: Sequence[Sequence[int]],
    *,
    modules: Mapping[Any, nn.Module] | None = None,
    first_token: FirstToken = "decode",
    note: Callable[[str], None] = lambda text: None,
) -> SelectionContext:
    """Return the context of a selector of K/V on a model under a plan, with token sequences to see it read.

    The first half of each sequence is its prompt. `modules` are those of the plan's elements, such as merged blocks.
    """
    items = [_in_halves(number, text) for number, text in enumerate(texts)]
    return SelectionContext(model, plan, dict(modules or {}), items, "texts", first_token, note)


def _in_halves(number: int, text: Sequence[int]) -> Item:
    half = len(text) // 2
    return Item((tuple(text[:half]),), (tuple(text[half:]),), 0, (1,), f"text {number}")
