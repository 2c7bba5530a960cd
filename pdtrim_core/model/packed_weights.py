"""Linear layers whose weights lie in the order in which a processor's kernels read them.

torch multiplies a few rows by a weight as if it had never seen that weight: it brings all of it in order, each time anew, which
takes longer than the products. A model that writes texts multiplies by the same weights for each token. oneDNN, which is part of
torch, keeps the order; torch's own compiler asks it for that in the same way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from pdtrim_core.model.block_model import BlockModel

PAYS = 10
"""Products by each weight from which on it takes less time to pack it first."""
MOST_BYTES = 2**31
"""Weights behind so many bytes stay as they are, since packed ones lie beside them in memory."""
FORMATS = (torch.float32, torch.bfloat16)


@contextmanager
def packed(*models: BlockModel, products: int, modules: Iterable[nn.Module] = ()) -> Iterator[None]:
    """Multiply by packed weights inside the context wherever a layer has one of these weights, and where that is faster.

    The weights are those of linear layers in `modules`, then in the models; a model whose weights stay on the disk is left as it
    is. `products` is how often each multiplies, about. Modules may come and go inside, since a weight is known by itself, but its
    numbers must not change. The results are the same but for their last digits.
    """
    whole = [model.model for model in models if not model.streams]
    weights = _packable([*modules, *whole]) if products >= PAYS else []
    if not weights:
        yield
        return
    with _PackedWeights(weights):
        yield


class _PackedWeights(TorchFunctionMode):
    """Has the products by some weights made by their packed counterparts."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        # A weight is held as long as its number stands for it.
        self._orders = {id(weight): (weight, _packed(weight)) for weight in weights}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is linear and not kwargs and len(args) == 3:
            given, weight, bias = args  # as nn.Linear calls it, with None for a bias that it has not
            if id(weight) in self._orders and not given.requires_grad:
                return _multiplied(self._orders[id(weight)][1], bias, given)
        return func(*args, **(kwargs or {}))


def _packable(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the weights of linear layers that can be packed, each once, as many as there is room for."""
    found: dict[int, Tensor] = {}
    room = MOST_BYTES
    for layer in (layer for module in modules for layer in module.modules() if type(layer) is nn.Linear):
        weight = layer.weight
        if id(weight) not in found and weight.nbytes <= room and _can_pack(weight):
            found[id(weight)] = weight
            room -= weight.nbytes
    return list(found.values())


def _can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype in FORMATS and not weight.requires_grad and _packs(weight.dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Tell whether this torch on this processor multiplies by packed weights in a number format, by trying it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    eye = torch.eye(16, dtype=dtype)
    try:
        found = _multiplied(_packed(eye), None, eye)
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.equal(found, eye)


def _packed(weight: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight)  # noqa: SLF001 - see above
    return result


def _multiplied(order: Tensor, bias: Tensor | None, given: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(given, order, bias, "none", [], "")  # noqa: SLF001 - see above
    return result
