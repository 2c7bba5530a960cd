"""The first token of a prompt: its hidden states depend on it alone, so the dense model's are known from a table.

Shape suffixes: B batch, T token, K tokens of a table, L depths, N first tokens of prompts, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.execution.batching import Firsts
from pdtrim_core.execution.prompt_kv import kv_made_by, same_kv
from pdtrim_core.execution.stage_modules import Modules, Step, module_of, removed_module_of
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.passes import Pass, results_of
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan

OTHERS = -1
"""Stands for all tokens that a table does not have, where it has a row for them."""


class FirstTokens(nn.Module):
    """The dense model's hidden states of some tokens, each as the first of a text, in front of some blocks.

    `tokens` are `[K]`, ascending, and may begin with `OTHERS`, whose row is that of all tokens that have none of their own;
    `depths` are the blocks `[L]`, and `states` `[L, K, D]` is what stands in front of each. Prefill goes on from these states,
    whatever it has lost: its layers there make K/V of them with their own weights, and where it only computes K/V, with the
    weights that the plan left, since recovered ones are made for states that lack something.

    Raises `ValueError` where the shapes do not belong together.
    """

    tokens: Tensor
    depths: Tensor
    states: Tensor

    def __init__(self, tokens: Tensor, depths: Tensor, states: Tensor) -> None:
        super().__init__()
        if states.dim() != 3 or states.shape[:2] != (*depths.shape, *tokens.shape):
            raise ValueError(
                f"states of shape {tuple(states.shape)} are not those of {len(tokens)} tokens at {len(depths)} depths"
            )
        self.register_buffer("tokens", tokens)
        self.register_buffer("depths", depths)
        self.register_buffer("states", states)
        self._has_others = bool(len(tokens)) and int(tokens[0]) == OTHERS
        self._number = {int(depth): number for number, depth in enumerate(depths)}

    def covers(self, block: int) -> bool:
        """Whether it has the states in front of a block."""
        return block in self._number

    def states_at(self, block: int) -> Tensor:
        """Return the states `[K, D]` in front of a block that it covers."""
        return self.states[self._number[block]]

    def known(self, firsts: Firsts) -> Tensor:
        """Return the places of those first tokens that are in the table."""
        known_N, _ = self._rows(firsts.ids_N)
        return firsts.at_N[known_N.to(firsts.at_N.device)]

    def put(self, hidden_BTD: Tensor, block: int, firsts: Firsts) -> Tensor:
        """Return the hidden states in front of a block, with the table's for those first tokens that are in it."""
        if not self.covers(block):
            return hidden_BTD
        known_N, rows_N = self._rows(firsts.ids_N)
        states_ND = self.states_at(block)[rows_N[known_N]].to(hidden_BTD.device, hidden_BTD.dtype)
        at_N = self.known(firsts).to(hidden_BTD.device)
        return hidden_BTD.flatten(0, 1).index_copy(0, at_N, states_ND).view_as(hidden_BTD)

    def _rows(self, ids_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each token whether it is in the table, and its row if it is."""
        ids_N = ids_N.to(self.tokens.device).contiguous()
        rows_N = torch.searchsorted(self.tokens, ids_N).clamp(max=len(self.tokens) - 1)
        known_N = self.tokens[rows_N] == ids_N
        if self._has_others:
            return torch.ones_like(known_N), rows_N.where(known_N, 0)
        return known_N, rows_N


def first_tokens_in(modules: Modules, plan: Plan) -> FirstTokens | None:
    """Return the table of a plan, if it has one."""
    found = modules.get(FirstTokensOf(plan))
    assert found is None or isinstance(found, FirstTokens)
    return found


def depths_of(plan: Plan, block_count: int) -> tuple[int, ...]:
    """Return the blocks at which prefill has layers, from the first one on at which it loses something."""
    first = min((element.blocks[0] for element in plan.prefill), default=block_count)
    return tuple(dict.fromkeys(layer.block for layer in plan.layers("prefill", block_count) if layer.block >= first))


def first_tokens_of(model: BlockModel, tokens: Iterable[int], depths: Sequence[int], *, others: bool = False) -> FirstTokens:
    """Return the table of some tokens, computed with the dense model; with `others`, all others have the mean of their states.

    Raises `PdtrimError` for a token that the model does not have.
    """
    tokens = sorted(set(tokens))
    model.check_ids(tokens, "a table of first tokens")
    ids_K = torch.tensor(tokens, device=model.device)
    with torch.inference_mode():
        passes = (_states_pass(model, ids_B, depths) for ids_B in torch.split(ids_K, model.fitting_batch))
        parts = list(results_of(passes, together=model.streams))
    # A clone outside inference mode: gradients may flow through what is computed from it.
    states_LKD = torch.cat(parts, dim=1).clone()
    if others:
        ids_K = torch.cat([ids_K.new_tensor([OTHERS]), ids_K])
        states_LKD = torch.cat([states_LKD.mean(dim=1, keepdim=True), states_LKD], dim=1)
    return FirstTokens(ids_K, torch.tensor(depths), states_LKD)


def _states_pass(model: BlockModel, ids_B: Tensor, depths: Sequence[int]) -> Pass[Tensor]:
    """Return the pass that makes the states `[L, B, D]` of some tokens in front of some blocks."""
    recording = model.record(ids_B[:, None])
    states_BTD, states = recording.hidden_BTD, []
    for depth, before in zip(depths, (0, *depths), strict=False):
        for block in range(before, depth):
            yield block
            states_BTD = model.run(block, states_BTD, recording.calls)
        states.append(states_BTD[:, 0].to(model.device))
    return torch.stack(states)


def kv_of_first(model: BlockModel, plan: Plan, layer: Layer, modules: Modules) -> nn.Module | None:
    """Return what makes the K/V of a first token in one of prefill's layers, where that is not what makes those of the others."""
    if layer.runs or LayerOf.at(plan, "prefill", layer) not in modules:
        return None
    left = removed_module_of(model, layer, modules)
    return None if same_kv(left, module_of(model, plan, "prefill", layer, modules), model.layout.kv) else left


def give_first_tokens(
    steps: Sequence[Step], table: FirstTokens, firsts: Firsts, kv_of: Mapping[int, nn.Module], names: Sequence[str]
) -> None:
    """Let prefill's steps go on from the states of a table; `as_stage`, inside which this is called, puts all back.

    `kv_of` has what makes the K/V of first tokens where it is not what runs at a step, by number; `names` are the parts that do.
    """
    for number, step in enumerate(steps):
        if table.covers(step.layer.block):
            maker = kv_of.get(number, step.module)
            vars(step.module)["forward"] = _forward(step, table, firsts, maker, names)


def _forward(step: Step, table: FirstTokens, firsts: Firsts, maker: nn.Module, names: Sequence[str]) -> Callable[..., Any]:
    inner = step.module.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        hidden_BTD = table.put(args[0] if args else kwargs["hidden_states"], step.layer.block, firsts)
        with kv_made_by(maker, step.module, names, table.known(firsts)):
            return inner(hidden_BTD, *args[1:], **kwargs) if args else inner(**{**kwargs, "hidden_states": hidden_BTD})

    return forward
