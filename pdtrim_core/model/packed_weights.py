"""Linear layers whose weights lie in the order in which a processor's kernels read them.

torch multiplies a few rows by a weight as if it had never seen that weight: it brings all of it in order, each time anew, which
takes longer than the products. A model that writes texts multiplies by the same weights for each token. oneDNN, which is part of
torch, keeps the order; torch's own compiler asks it for that in the same way.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import cache, partial
from typing import TypeGuard

import torch
from torch import Tensor, nn

from pdtrim_core.model.block_model import BlockModel

PAYS = 10
"""Products by each weight from which on it takes less time to pack it first."""
MOST_BYTES = 2**31
"""Weights that are more than this stay as they are, since packed ones lie beside them in memory."""
FORMATS = (torch.float32, torch.bfloat16)


@contextmanager
def packed(*modules: nn.Module, products: int) -> Iterator[None]:
    """Let the linear layers of modules multiply by packed weights inside the context, where that is faster.

    `products` is how often each will, about. Inside, modules must neither change nor be copied, and no gradients go through. The
    numbers are the same but for their last digits.
    """
    layers = _packable(modules) if products >= PAYS else []
    orders: dict[int, Tensor] = {}
    try:
        for layer in layers:
            if id(layer.weight) not in orders:
                orders[id(layer.weight)] = torch.ops.mkldnn._reorder_linear_weight(layer.weight)  # noqa: SLF001 - see above
            vars(layer)["forward"] = partial(_multiplied, orders[id(layer.weight)], layer.bias)
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)


def packed_model(model: BlockModel, *, products: int) -> AbstractContextManager[None]:
    """Let all of a model multiply by packed weights inside the context; one whose weights stay on the disk is left as it is."""
    return packed(*(() if model.streams else (model.model,)), products=products)


def packed_heads(*models: BlockModel, products: int) -> AbstractContextManager[None]:
    """Let what makes the logits of models multiply so, and nothing else of them: blocks may change and be copied."""
    heads = [model.head for model in models if model.head is not None and not model.streams]
    return packed(*heads, products=products)


def _packable(modules: Sequence[nn.Module]) -> list[nn.Linear]:
    """Return the linear layers of modules that can be packed; none where all of them together are too much."""
    found = [layer for module in modules for layer in module.modules() if _can_pack(layer)]
    weights = {id(layer.weight): layer.weight.nbytes for layer in found}
    return found if sum(weights.values()) <= MOST_BYTES else []


def _multiplied(weight: Tensor, bias: Tensor | None, given: Tensor) -> Tensor:
    result: Tensor = torch.ops.mkldnn._linear_pointwise(given, weight, bias, "none", [], "")  # noqa: SLF001 - see above
    return result


def _can_pack(layer: nn.Module) -> TypeGuard[nn.Linear]:
    """Tell whether a module is a linear layer that nobody changed, with a weight that the processor's kernels take."""
    if type(layer) is not nn.Linear or "forward" in vars(layer):
        return False
    weight = layer.weight
    return weight.device.type == "cpu" and weight.dtype in FORMATS and not weight.requires_grad and _packs(weight.dtype)


@cache
def _packs(dtype: torch.dtype) -> bool:
    """Tell whether this torch on this processor multiplies by packed weights in a number format, by trying it."""
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    eye = torch.eye(16, dtype=dtype)
    try:
        found = _multiplied(torch.ops.mkldnn._reorder_linear_weight(eye), None, eye)  # noqa: SLF001 - see above
    except (AttributeError, NotImplementedError, RuntimeError):
        return False
    return torch.equal(found, eye)
