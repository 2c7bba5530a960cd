"""What the routers of a mixture of experts chose for some tokens, block by block.

Shape suffixes: B batch, T token, D hidden, N tokens that are looked at, K experts that a token goes to.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.api.score_context import ScoreContext, TokenBatch


@dataclass(frozen=True)
class RoutedTokens:
    """Some tokens at one block: the hidden states `[N, D]` that its experts are given, and where the router sent each.

    `chosen_NK` has the numbers of the experts, and `weights_NK` what the block multiplies with what these make.
    """

    block: int
    hidden_ND: Tensor
    chosen_NK: Tensor
    weights_NK: Tensor
    experts: nn.Module

    def made_by(self, expert: int, hidden_ND: Tensor) -> Tensor:
        """Return what one expert makes of hidden states `[N, D]`, without the router's weight. Call it inside the look alone."""
        one_N1 = self.chosen_NK.new_full((len(hidden_ND), 1), expert)
        weight_N1 = self.weights_NK.new_ones(len(hidden_ND), 1)
        given = dict(zip(_names(self.experts), (hidden_ND, one_N1, weight_N1), strict=True))
        # By place, since other implementations of experts have other names; not by calling the module, whose hooks look.
        made_ND: Tensor = self.experts.forward(*(given[name] for name in _parameters(self.experts) if name in given))
        return made_ND


def look_at_routers(context: ScoreContext, runs: Sequence[range], function: Callable[[RoutedTokens], None]) -> None:
    """Call a function with what the routers of the dense model choose for some tokens of each sequence of a context."""
    model, latest = context.model, dict[int, tuple[Tensor, Tensor, Tensor]]()
    found = {block: model.units(block).experts for block in range(model.block_count)}
    modules = {block: model.blocks[block].get_submodule(experts.name) for block, experts in found.items() if experts is not None}

    def look(batch: TokenBatch, block: int, _length: int, before_BTD: Tensor, _after_BTD: Tensor) -> None:
        seen = latest.pop(block, None)
        at = [place for row, number in enumerate(batch.rows) for place in _places(runs[number], row, before_BTD.shape[1])]
        if seen is not None and at:
            hidden_MD, chosen_MK, weights_MK = seen
            at_N = torch.tensor(at, device=hidden_MD.device)
            function(RoutedTokens(block, hidden_MD[at_N], chosen_MK[at_N], weights_MK[at_N], modules[block]))

    with ExitStack() as hooks:
        for block, module in modules.items():
            hooks.callback(module.register_forward_pre_hook(_noting(latest, block), with_kwargs=True).remove)
        context.look(look, (1,))


def _places(run: range, row: int, width: int) -> Iterator[int]:
    """Yield where the tokens of a row are, counted through all rows."""
    yield from range(row * width + run.start, row * width + run.stop)


def _noting(latest: dict[int, tuple[Tensor, Tensor, Tensor]], block: int) -> Callable[..., None]:
    def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        hidden, chosen, weights = (bound[name] for name in _names(module))
        latest[block] = hidden.reshape(-1, hidden.shape[-1]), chosen, weights

    return note


def _names(experts: nn.Module) -> tuple[str, str, str]:
    """Return how experts call what they are given: hidden states, the numbers of the experts, and their weights."""
    first, *others = _parameters(experts)
    numbers, weights = (next(name for name in others if word in name) for word in ("ind", "weights"))
    return first, numbers, weights


def _parameters(experts: nn.Module) -> tuple[str, ...]:
    return tuple(inspect.signature(experts.forward).parameters)
