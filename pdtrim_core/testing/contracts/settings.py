"""What changes a computation beside weights and modules: torch's settings, configs, the tokenizer, attributes of modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pdtrim_core.model.block_model import BlockModel

_ABSENT = object()
_OF_TORCH: Mapping[str, Callable[[], Any]] = {
    "the grad mode": torch.is_grad_enabled,
    "the inference mode": torch.is_inference_mode_enabled,
    "the anomaly mode": torch.is_anomaly_enabled,
    "the use of deterministic algorithms": lambda: (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    ),
    "the number of threads": torch.get_num_threads,
    "the default dtype": torch.get_default_dtype,
    "the default device": torch.get_default_device,
    "the precision of matrix products": torch.get_float32_matmul_precision,
    "the autocast mode": lambda: tuple(torch.is_autocast_enabled(device) for device in ("cpu", "cuda")),
    "the settings of cudnn": lambda: (
        torch.backends.cudnn.enabled,
        torch.backends.cudnn.benchmark,
        torch.backends.cudnn.deterministic,
    ),
    "the kernels of attention": lambda: (
        torch.backends.cuda.flash_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.mem_efficient_sdp_enabled(),  # type: ignore[no-untyped-call]
        torch.backends.cuda.math_sdp_enabled(),  # type: ignore[no-untyped-call]
    ),
}
"""What torch computes with, whatever the model. Its generators are not here: they may move."""
_CONFIGS = ("config", "generation_config")
_KEPT_BY_TORCH = frozenset(vars(nn.Module()))
"""Attributes of every module: its weights, modules, hooks and mode, which are compared in their own words, and torch's notes."""
_NOTES = frozenset({"deprecation_warnings"})
"""What a tokenizer of transformers remembers of what it said."""


def settings_of(model: BlockModel) -> dict[str, Any]:
    """Return what torch, the configs and the tokenizer are set to, by its name in words; equal where nothing changed."""
    found: dict[str, Any] = {f"{name} of torch": read() for name, read in _OF_TORCH.items()}
    found |= {f"torch's {name.strip('_')} for all modules": dict(hooks) for name, hooks in _global_hooks()}
    for name, config in _configs(model):
        found |= {f"{key} of {name}": frozen(value) for key, value in vars(config).items()}
    tokenizer = model.tokenizer
    found["the tokenizer"] = _Itself(tokenizer)
    found |= {f"{key} of the tokenizer": frozen(value) for key, value in _own(tokenizer).items() if key not in _NOTES}
    if hasattr(tokenizer, "get_vocab"):
        found["the vocabulary of the tokenizer"] = tokenizer.get_vocab()
    return found


def attributes_of(module: nn.Module) -> dict[str, Any]:
    """Return a module's own attributes, without what torch keeps in every module and methods of its class."""
    return {
        name: frozen(value)
        for name, value in vars(module).items()
        if name not in _KEPT_BY_TORCH and not callable(getattr(type(module), name, None))
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield in words what differs between two sets of settings."""
    for name in dict.fromkeys((*before, *now)):
        old, new = before.get(name, _ABSENT), now.get(name, _ABSENT)
        if old is _ABSENT:
            yield f"{name} was added"
        elif new is _ABSENT:
            yield f"{name} was removed"
        elif old != new:
            plain = isinstance(old, _PLAIN) and isinstance(new, _PLAIN)
            yield f"{name} was changed" + (f" from {old!r} to {new!r}" if plain else "")


_PLAIN = (bool, int, float, str, torch.dtype, torch.device, type(None))


def frozen(value: Any) -> Any:
    """Return what a value is compared by: a copy of plain data and of tensors, itself for anything else."""
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, Mapping):
        return {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [type(value), *map(frozen, value)]
    if isinstance(value, set | frozenset):
        return set(value)
    if isinstance(value, Tensor):
        return _Numbers(value)
    return _Itself(value)


class _Numbers:
    """A tensor as it was; equal to one of the same numbers."""

    def __init__(self, tensor: Tensor) -> None:
        self._numbers = tensor.detach().clone()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Numbers) and same_numbers(self._numbers, other._numbers)

    __hash__ = None  # type: ignore[assignment]


class _Itself:
    """Any other thing, equal to itself alone. It is held, so that no other gets its place in memory."""

    def __init__(self, thing: object) -> None:
        self._thing = thing

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self._thing is other._thing

    __hash__ = None  # type: ignore[assignment]


def same_numbers(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors have the same format, device, shape and numbers."""
    return one.dtype == other.dtype and one.device == other.device and torch.equal(one, other)


def _global_hooks() -> Iterator[tuple[str, Mapping[Any, Any]]]:
    """Yield torch's hooks that are called for every module, by their sort."""
    for name, hooks in vars(nn.modules.module).items():
        if name.startswith("_global_") and isinstance(hooks, dict):
            yield name, hooks


def _configs(model: BlockModel) -> Iterator[tuple[str, Any]]:
    """Yield each config of a model once with its name in words: those of its modules, and those inside others."""
    seen: set[int] = set()
    for place, module in model.model.named_modules():
        for key in _CONFIGS:
            waiting = [(f"the {key} of {place or 'the model'}", vars(module).get(key))]
            while waiting:
                name, config = waiting.pop()
                if not hasattr(config, "to_dict") or id(config) in seen:
                    continue
                seen.add(id(config))
                yield name, config
                waiting += [(f"{inner} in {name}", value) for inner, value in vars(config).items()]


def _own(thing: Any) -> Mapping[str, Any]:
    return getattr(thing, "__dict__", {})
