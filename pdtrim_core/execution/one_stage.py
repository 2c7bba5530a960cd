"""One stage as a model of its own, with nothing in it that the stage does not run: what timing measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch import Tensor, nn

from pdtrim_core.execution.stage_modules import Modules, Step, as_stage, steps_of
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.plan import Plan


class _KvMade(Exception):  # noqa: N818 - no error: what a block was run for is there
    """The K/V of a block are in the cache."""


@contextmanager
def stage_alone(model: BlockModel, plan: Plan, stage: Stage, modules: Modules) -> Iterator[None]:
    """Make the model one stage of a plan inside the context, with nothing in it that the stage does not run.

    K/V-only blocks of prefill end there, where a cache is given; the K/V are those of the whole block.
    Meant for timing: the reference in `two_phase` runs such blocks to their end.
    """
    steps = steps_of(model, plan, stage, modules)
    with as_stage(model, steps):
        for step in steps:
            if not step.layer.runs:
                _end_at_kv(model, step)
        yield


def _end_at_kv(model: BlockModel, step: Step) -> None:
    """Let a step's block stop once its K/V are in the cache; its queries are not computed where they have their own module."""
    inner = type(step.module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden = args[0] if args else kwargs["hidden_states"]
        with suppress(_KvMade):
            inner(step.module, *map(_ending, args), **{key: _ending(value) for key, value in kwargs.items()})
        return model.wrap(step.layer.like, hidden)

    vars(step.module)["forward"] = forward
    for name in model.layout.attention[:1]:
        queries = step.module.get_submodule(name)
        vars(queries)["forward"] = _nothing(queries)


def _nothing(queries: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return a forward that gives zeros in the shape of a projection's output, at no cost."""
    width = next(queries.parameters()).shape[0]
    return lambda hidden: hidden.new_zeros(1).expand(*hidden.shape[:-1], width)


def _ending(value: Any) -> Any:
    return _Ending(value) if hasattr(value, "get_seq_length") else value


class _Ending:
    """A cache that ends the block that fills it."""

    def __init__(self, cache: Any) -> None:
        self._cache = cache

    def update(self, *args: Any, **kwargs: Any) -> None:
        self._cache.update(*args, **kwargs)
        raise _KvMade

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)
