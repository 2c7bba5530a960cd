"""What runs in each block of a model for one token, and the K and V that it hands to the cache."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.model.small_config import quietly


@dataclass(frozen=True)
class Ran:
    """A submodule of a block that has been run: its name there, itself, the first tensor that it was given, and what it made."""

    name: str
    module: nn.Module
    given: Tensor
    made: Tensor

    @property
    def linear(self) -> nn.Linear:
        """The module as a projection."""
        assert isinstance(self.module, nn.Linear)
        return self.module


@dataclass
class BlockTrace:
    """What ran in a block for one token, in order, and the K and V that it handed to the cache, each time."""

    ran: list[Ran] = field(default_factory=list)
    kv: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    @property
    def linears(self) -> list[Ran]:
        """The projections among what ran."""
        return [ran for ran in self.ran if isinstance(ran.module, nn.Linear)]


def traces_of(model: Any, blocks: Sequence[nn.Module], cache: Any) -> list[BlockTrace]:
    """Run one token through a model with a cache that is empty; return what ran in each block."""
    traces = [BlockTrace() for _ in blocks]
    inside: list[BlockTrace] = []
    update = cache.update

    def keep(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        for trace in inside:
            trace.kv.append((keys, values))
        return update(keys, values, *args, **kwargs)

    vars(cache)["update"] = keep
    with ExitStack() as hooks:
        for block, trace in zip(blocks, traces, strict=True):
            hooks.callback(block.register_forward_pre_hook(_calling(inside.append, trace)).remove)
            for name, module in block.named_modules():
                if not any(True for _ in module.children()):
                    hooks.callback(module.register_forward_hook(_noting(trace, name), with_kwargs=True).remove)
            hooks.callback(block.register_forward_hook(_calling(inside.remove, trace)).remove)
        with torch.inference_mode(), quietly():
            model(input_ids=torch.tensor([[1]]), use_cache=True, past_key_values=cache)
    return traces


def _calling(function: Any, trace: BlockTrace) -> Any:
    def call(*_args: Any) -> None:
        function(trace)

    return call


def _noting(trace: BlockTrace, name: str) -> Any:
    def note(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        if given is not None and isinstance(output, Tensor):
            trace.ran.append(Ran(name, module, given, output))

    return note


def plain_cache(config: Any = None) -> Any:
    """Return an empty cache that holds nothing but K and V, or with a config one of the kinds of state that it tells of."""
    from transformers import DynamicCache  # noqa: PLC0415 - slow to import

    return DynamicCache() if config is None else DynamicCache(config=config)
