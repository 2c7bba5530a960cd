"""Gradients of a model's own loss, a part of a block at a time, with nothing left behind.

Shape suffixes: B batch, T token.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from pdtrim_core.api import BlockModel, PdtrimError

Place = TypeVar("Place", bound=Hashable)

BATCH_TOKENS = 1024
"""Tokens a batch where the recipe says nothing: the ten windows of 64 that LLM-Pruner takes are one batch."""


def with_gradients(
    model: BlockModel,
    weights: Mapping[Place, Sequence[nn.Parameter]],
    windows: Sequence[Sequence[int]],
    use: Callable[[Place], None],
    *,
    batch_tokens: int | None = None,
) -> None:
    """Call `use` once for each place, when its weights have the gradient of the mean loss over the windows in `.grad`.

    Each gradient is freed behind its `use`: where the windows fit one batch, only one place's gradients are in memory.
    Raises `PdtrimError` where the loss or a gradient is not finite.
    """
    size = max(1, (batch_tokens or BATCH_TOKENS) // len(windows[0]))
    batches = [windows[start : start + size] for start in range(0, len(windows), size)]
    owner = {weight: place for place, of_place in weights.items() for weight in of_place}
    waiting = {place: len(of_place) for place, of_place in weights.items()}
    last = False

    def arrived(weight: nn.Parameter) -> None:
        if not last:
            return
        _check(model, weight.grad, "a gradient")
        place = owner[weight]
        waiting[place] -= 1
        if not waiting[place]:
            use(place)
            for done in weights[place]:
                done.grad = None

    with _watched(owner, arrived):
        for number, batch in enumerate(batches):
            last = number == len(batches) - 1
            _backward(model, batch, len(batch) / len(windows))


def mean_squares(
    model: BlockModel, weights: Iterable[nn.Parameter], windows: Sequence[Sequence[int]]
) -> dict[nn.Parameter, Tensor]:
    """Return the mean over the windows of each weight's squared gradient, in float32: as much memory again as the weights.

    It is the diagonal of the empirical Fisher matrix. Raises `PdtrimError` where the loss or a gradient is not finite.
    """
    sums = {weight: torch.zeros_like(weight, dtype=torch.float32) for weight in weights}

    def arrived(weight: nn.Parameter) -> None:
        assert weight.grad is not None
        _check(model, weight.grad, "a gradient")
        sums[weight].add_(weight.grad.float().square() / len(windows))
        weight.grad = None

    with _watched(sums, arrived):
        for window in windows:
            _backward(model, [window], 1)
    return sums


@contextmanager
def _watched(weights: Iterable[nn.Parameter], arrived: Callable[[nn.Parameter], None]) -> Iterator[None]:
    """Let gradients flow to some weights inside the context, and tell of each that a backward pass has made."""
    before = [(weight, weight.requires_grad) for weight in weights]
    handles = []
    try:
        for weight, _ in before:
            weight.requires_grad = True
            handles.append(weight.register_post_accumulate_grad_hook(arrived))  # type: ignore[no-untyped-call]
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for weight, required in before:
            weight.requires_grad = required
            weight.grad = None


def _backward(model: BlockModel, batch: Sequence[Sequence[int]], share: float) -> None:
    ids_BT = torch.tensor([list(window) for window in batch], device=model.device)
    loss = model.model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss
    _check(model, loss, "the loss over the calibration windows")
    (loss * share).backward()


def _check(model: BlockModel, value: Tensor | None, what: str) -> None:
    assert value is not None
    if not bool(torch.isfinite(value.detach()).all()):
        dtype = str(next(model.model.parameters()).dtype).removeprefix("torch.")
        raise PdtrimError(f"{model.name}: {what} is not finite in {dtype}: {_ADVICE.get(dtype, _ADVICE['bfloat16'])}")


_ADVICE = {
    "float32": "the checkpoint may be damaged",
    "float16": 'say model.dtype = "float32" or "bfloat16"',
    "bfloat16": 'say model.dtype = "float32"',
}
