"""Where the parts of a model compute, and their weights, wherever accelerate keeps these until they are wanted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError


def device_of(module: nn.Module) -> torch.device:
    """Return the device that a part of a model computes on: that of its weights, or where accelerate brings them."""
    for weight in module.parameters():
        if not weight.is_meta:
            return weight.device
    for part in module.modules():
        device = getattr(getattr(part, "_hf_hook", None), "execution_device", None)
        if device is not None:
            return torch.device(device)
    return next(module.parameters()).device


def weights_of(
    model: nn.Module, *, buffers: bool = False, behind: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights of a model by name, sorted, with their numbers; those that are offloaded are read one at a time.

    With `buffers` the tables that it computes with come, too. `behind` is called behind each of them.
    """
    named = [*model.named_parameters(), *(model.named_buffers() if buffers else ())]
    for name, tensor in sorted(named, key=lambda pair: pair[0]):
        yield name, _offloaded(model, name) if tensor.is_meta else tensor.detach()
        behind()


def _offloaded(model: nn.Module, name: str) -> Tensor:
    """Return a weight that accelerate keeps in main memory or on the disk."""
    parts = name.split(".")
    for depth in range(len(parts) - 1, -1, -1):
        hook: Any = getattr(model.get_submodule(".".join(parts[:depth])), "_hf_hook", None)
        held = getattr(hook, "weights_map", None)
        if held is not None:
            found: Tensor = held[".".join(parts[depth:])]
            return found
    raise PdtrimError(f"the weight {name} holds no numbers: the model is on the meta device")
