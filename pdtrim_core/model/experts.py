"""Finds the experts of a block and their router by structure; what is not certain counts as not there."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pdtrim_core.plan.routing import Routing

COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")
"""Attributes by which families' modules say how many experts there are."""
GROUPS = ("num_group", "n_group")
"""Attributes by which routers say in how many groups these are."""


@dataclass(frozen=True)
class Experts:
    """The experts of a block: the names of the module that holds them all and of the router, and how many there are."""

    name: str
    router: str
    count: int
    routing: Routing

    @property
    def parent(self) -> str:
        """The module that holds both: the mixture."""
        return self.name.rpartition(".")[0]


def experts_in(block: nn.Module) -> Experts | None:
    """Return the experts of a block; None where it has none, or where it is not certain what they and their router are.

    The experts are the one module whose own weights are all stacked, a row an expert, and which is called with the numbers of
    experts and their weights. The router is the one other module beside it that has a row an expert and knows how many a token
    goes to.
    """
    found = [(name, module) for name, module in block.named_modules() if name and _holds_experts(module)]
    if len(found) != 1:
        return None
    ((name, experts),) = found
    count = len(next(experts.parameters()))
    inside = name.rpartition(".")[0]
    beside = [
        (f"{inside}.{path}".strip("."), module)
        for path, module in block.get_submodule(inside).named_modules()
        if path and module is not experts
    ]
    routers = [(path, module) for path, module in beside if isinstance(vars(module).get("top_k"), int) and _rows(module, count)]
    others = [module for _, module in beside if not isinstance(module, nn.Linear) and module not in [one for _, one in routers]]
    if len(routers) != 1 or any(len(tensor.reshape(-1)) == count for module in others for tensor in own_tensors(module)):
        return None
    ((router, module),) = routers
    return Experts(name, router, count, _routing(module, count))


def own_tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield the weights and buffers of a module itself."""
    yield from module.parameters(recurse=False)
    yield from module.buffers(recurse=False)


def keep_experts(block: nn.Module, experts: Experts, kept: Sequence[int]) -> None:
    """Leave a block some of its experts, in rising order. Weights are replaced, and none is changed in place."""
    for name in (experts.name, experts.router):
        module = block.get_submodule(name)
        for path, weight in list(module.named_parameters(recurse=False)):
            setattr(module, path, nn.Parameter(_of(weight, kept), requires_grad=False))
        for path, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, path, _of(buffer, kept))
    mixture = block.get_submodule(experts.parent)
    for path, buffer in list(mixture.named_buffers(recurse=False)):
        # Some families keep the corrections of their router beside it.
        if buffer.shape == (experts.count,):
            setattr(mixture, path, _of(buffer, kept))
    for module in mixture.modules():
        for attribute in COUNTS:
            if vars(module).get(attribute) == experts.count:
                setattr(module, attribute, len(kept))


def _of(tensor: Tensor, kept: Sequence[int]) -> Tensor:
    return tensor.detach().index_select(0, torch.tensor(kept, device=tensor.device))


def _holds_experts(module: nn.Module) -> bool:
    weights = list(module.parameters(recurse=False))
    takes = inspect.signature(module.forward).parameters
    return (
        any(weight.dim() == 3 for weight in weights)
        and len({len(weight) for weight in weights}) == 1
        and len(weights[0]) == vars(module).get("num_experts")
        and len(list(module.modules())) <= 2
        and any("ind" in name for name in takes)
        and any("weights" in name for name in takes)
    )


def _rows(module: nn.Module, count: int) -> bool:
    tensors = list(own_tensors(module))
    return any(tensor.dim() == 2 for tensor in tensors) and all(tensor.dim() and len(tensor) == count for tensor in tensors)


def _routing(router: nn.Module, count: int) -> Routing:
    told = vars(router)
    each = sum(weight.numel() for weight in router.parameters(recurse=False)) // count
    groups = next((told[name] for name in GROUPS if told.get(name)), None)
    if groups is None or told.get("topk_method") == "greedy":
        return Routing(told["top_k"], each)
    # Routers of DeepSeek-V3's kind add up the best two of a group; one of V2's takes the best.
    rated_by = 1 if "topk_method" in told else 2
    return Routing(told["top_k"], each, groups, told.get("topk_group") or groups, rated_by)
