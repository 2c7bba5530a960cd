"""Blocks without their attention or their MLP: a copy whose part gives zeros, where trying shows that this leaves the part out.

Shape suffixes: B batch, T token, D hidden.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pdtrim_core.errors import reason_of
from pdtrim_core.model.block_calls import Call, hidden_of, run_block
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.renumbering import NUMBER
from pdtrim_core.model.small_config import quietly
from pdtrim_core.plan.elements import PARTS, Part

NEAR = 1e-3
"""How far two tensors may be apart, as a share of their length, and count as the same: more than rounding in bfloat16 sums."""
NO_MODULE = "it is no module of its own in a block"
UNLIKE = "it is another sort of module from block to block"
NOT_ADDED = "what it gives is not simply added to the hidden states, so that nothing is not the same as zeros"
STILL_MIXES = "without it tokens still look at others"


@dataclass(frozen=True)
class PartModule:
    """The module of a block that is its attention or its MLP, by name.

    `values` is how many values it returns in a tuple, of which the first are the hidden states; 0 where it returns these alone.
    """

    name: str
    values: int = 0


@dataclass(frozen=True)
class FoundParts:
    """The parts that all blocks of a model can run without, and why they cannot run without the others."""

    modules: Mapping[Part, PartModule] = field(default_factory=dict)
    refused: Mapping[Part, str] = field(default_factory=dict)


class Zeros(nn.Module):
    """Stands for a part that is gone: gives zeros in the shape of the hidden states, and the form of what the part returned."""

    def __init__(self, values: int = 0) -> None:
        super().__init__()
        self.values = values

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return zeros for the first tensor among the arguments, which are the hidden states `[B, T, D]`."""
        hidden_BTD = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        # New ones each time: some blocks add to them in place.
        zeros_BTD = torch.zeros_like(hidden_BTD)
        return (zeros_BTD, *(None,) * (self.values - 1)) if self.values else zeros_BTD


def part_names(block: nn.Module, layout: BlockLayout) -> dict[Part, str]:
    """Return the modules that are a block's attention and its MLP, as far as that is certain, without running it.

    Of the modules that hold matrices one is the attention: that with the projections of K and V, or else the one that knows its
    number in the cache. If there is one other, that is the MLP.
    """
    wide = [name for name, child in block.named_children() if _has_matrices(child)]
    said = {name.partition(".")[0] for name in (*layout.kv[1:3], *layout.attention)}
    attention = [name for name in wide if name in said] or [name for name in wide if _is_numbered(block.get_submodule(name))]
    if len(attention) != 1:
        return {}
    others = [name for name in wide if name not in attention]
    return {"attention": attention[0], **({"mlp": others[0]} if len(others) == 1 else {})}


def without_part(block: nn.Module, module: PartModule) -> nn.Module:
    """Return a block in which a part gives zeros; all weights that are left are shared with the block."""
    shared = {id(tensor): tensor for tensor in (*block.parameters(), *block.buffers())}
    changed = copy.deepcopy(block, shared)
    setattr(changed, module.name, Zeros(module.values))
    return changed


def found_parts(blocks: Iterable[nn.Module], layout: BlockLayout, hidden_BTD: Tensor, calls: Sequence[Call]) -> FoundParts:
    """Find the parts of blocks and try out that each block can run without them, on some hidden states of several tokens.

    A part can be left out where a block that lacks it, and whose other weights are all zero, hands on what it was given: the
    hidden states pass it by. Without attention no token may look at another one.
    """
    modules: dict[Part, PartModule] = {}
    refused: dict[Part, str] = {}
    for block, call in zip(blocks, calls, strict=True):
        names = part_names(block, layout)
        for part in PARTS:
            if part in refused:
                continue
            if part not in names:
                refused[part] = NO_MODULE
                continue
            try:
                with torch.inference_mode(), quietly():
                    module = PartModule(names[part], _values(block, names[part], hidden_BTD, call))
                    problem = _problem(block, call, part, module, hidden_BTD)
            except Exception as error:  # noqa: BLE001 - each architecture trips over a missing part in its own way
                problem = reason_of(error, kind=True)
            if not problem and modules.setdefault(part, module) != module:
                problem = UNLIKE
            if problem:
                refused[part] = problem
    return FoundParts({part: module for part, module in modules.items() if part not in refused}, refused)


def _has_matrices(module: nn.Module) -> bool:
    return any(parameter.dim() > 1 for parameter in module.parameters())


def _is_numbered(module: nn.Module) -> bool:
    return any(NUMBER in vars(inside) for inside in module.modules())


def _values(block: nn.Module, name: str, hidden_BTD: Tensor, call: Call) -> int:
    """Return how many values a module of a block returns in a tuple; 0 for a tensor."""
    seen: list[int] = []
    module = block.get_submodule(name)

    def note(_module: nn.Module, _args: Any, made: Any) -> None:
        seen.append(len(made) if isinstance(made, tuple | list) else 0)

    hook = module.register_forward_hook(note)
    try:
        _run(block, hidden_BTD, call)
    finally:
        hook.remove()
    (found,) = seen
    return found


def _problem(block: nn.Module, call: Call, part: Part, module: PartModule, hidden_BTD: Tensor) -> str:
    """Return why a block cannot run without a part, "" where it can."""
    left = without_part(block, module)
    zeros = {
        f"{name}.{path}": torch.zeros_like(parameter)
        for name, child in left.named_children()
        if _has_matrices(child)
        for path, parameter in child.named_parameters()
    }
    given = {"hidden_states": hidden_BTD.clone()} if call.by_keyword else {}
    args = () if call.by_keyword else (hidden_BTD.clone(), *call.args)
    passed_BTD = hidden_of(functional_call(left, zeros, args, {**call.kwargs, **given}))
    if not _alike(passed_BTD, hidden_BTD):
        return NOT_ADDED
    if part == "attention":
        other_BTD = hidden_BTD.clone()
        other_BTD[:, 0] = -other_BTD[:, 0] + 1
        made, again = (_run(left, states, call)[:, -1] for states in (hidden_BTD, other_BTD))
        return "" if _alike(made, again) else STILL_MIXES
    return ""


def _run(block: nn.Module, hidden_BTD: Tensor, call: Call) -> Tensor:
    return run_block(block, hidden_BTD.clone(), call.args, call.kwargs, by_keyword=call.by_keyword)


def _alike(one: Tensor, other: Tensor) -> bool:
    if not (one.isfinite().all() and other.isfinite().all()):
        # Damaged weights say nothing of the parts, and others look for them.
        return True
    # A block may compute on another device than its neighbours.
    return float((one.to(other.device) - other).float().norm()) <= NEAR * float(other.float().norm())
