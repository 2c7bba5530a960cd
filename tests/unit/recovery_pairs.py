"""Pairs to recover, made without a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from pdtrim_core.api import Drop, Item, Plan, RecoveryContext, Removal
from pdtrim_core.execution.walked import Walked

if TYPE_CHECKING:
    from torch import nn

    from pdtrim_core.api import BlockModel

DECODE_DROPS = Plan(decode=Removal([Drop(2)]))


def some_texts(count: int, *, seed: int = 0, tokens: int = 16) -> list[Item]:
    """Texts of one length, of bytes, each with a prompt of another length."""
    rng = Random(seed)
    found = []
    for number in range(count):
        text, prompt = tuple(rng.randrange(256) for _ in range(tokens)), rng.randint(2, tokens // 2)
        found.append(Item((text[:prompt],), (text[prompt:],), 0, (1,), f"text {seed}.{number}"))
    return found


def recovery_context(
    model: BlockModel,
    plan: Plan = DECODE_DROPS,
    *,
    folder: Path = Path("no folder"),
    modules: Mapping[Any, nn.Module] | None = None,
    note: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> RecoveryContext:
    """What a recovery is given for a plan on a model; `options` are other fields of what is walked and of the context."""
    of_pair = {name: options.pop(name) for name in ("first_token", "batch_tokens") if name in options}
    texts, check = options.pop("texts", None) or some_texts(24), options.pop("check", None) or some_texts(8, seed=1)
    pair = Walked(model, plan, dict(modules or {}), texts, **of_pair)
    return RecoveryContext(pair, check, Random(0), folder, note, **options)
