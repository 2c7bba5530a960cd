"""What a component that is given the dense model must leave as it was: all that the next one would notice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pdtrim_core.data.items import Sample, encode
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.plan import Plan
from pdtrim_core.testing.contracts.settings import attributes_of, changed, same_numbers, settings_of
from pdtrim_core.testing.models import ByteTokenizer

_OF_TENSORS = ("_backward_hooks", "_post_accumulate_grad_hooks")
"""Where torch keeps the hooks of a tensor."""


@contextmanager
def left_as_it_was(model: BlockModel) -> Iterator[None]:
    """Fail when a model is another at the end than at the beginning, naming what was left behind.

    That is its modules, their modes, hooks, attributes and patched methods; its weights and buffers, whether they take
    gradients, and their gradients and hooks; its configs and tokenizer; torch's settings and hooks for all modules, without its
    generators, which may move; and what the model computes.
    """
    sums = _computed(model)
    before = _State.of(model)
    yield
    found = [*_State.of(model).changes_since(before)]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    assert not found, f"the model must be left as it was: {found[0]}{more}"
    assert _computed(model) == sums, "the model must be left as it was: it computes something else than before"


def _computed(model: BlockModel) -> Any:
    item = encode(Sample("What is", (" this?", " that?")), ByteTokenizer())
    return StagedModel(PrefixCache(model), Plan()).loglikelihoods([item])


@dataclass(frozen=True)
class _State:
    """What is compared: the modules of a model, its weights and buffers, and settings, each by its name."""

    modules: Mapping[str, _Module]
    tensors: Mapping[str, _Tensor]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, model: BlockModel) -> _State:
        """Return the state that a model is in; the model as blocks is one of the modules, the one whose methods are patched."""
        modules = {name: _Module.of(module) for name, module in model.model.named_modules()}
        own = _Module(model, mode=False, hooks={}, patches=_patches(model), attributes={})
        tensors = (*model.model.named_parameters(), *model.model.named_buffers())
        by_name = {name: _Tensor.of(tensor) for name, tensor in tensors}
        return cls({"BlockModel": own, **modules}, by_name, settings_of(model))

    def changes_since(self, before: _State) -> Iterator[str]:
        """Yield in words what is another than before."""
        for name in dict.fromkeys((*before.modules, *self.modules)):
            known, now = before.modules.get(name), self.modules.get(name)
            if known is None or now is None or known.module is not now.module:
                yield f"the module {_named(name)} was {'added' if known is None else 'removed' if now is None else 'replaced'}"
            else:
                yield from now.changes_since(known, _named(name))
        for name in dict.fromkeys((*before.tensors, *self.tensors)):
            if name not in self.tensors:
                yield f"the {before.tensors[name].sort} {name} was removed"
            elif name not in before.tensors:
                yield f"the {self.tensors[name].sort} {name} was added"
            else:
                yield from self.tensors[name].changes_since(before.tensors[name], name)
        yield from changed(before.settings, self.settings)


@dataclass(frozen=True)
class _Module:
    """A module: its mode, its hooks of each sort, the methods it has of its own in place of its class's, and its attributes."""

    module: Any
    mode: bool
    hooks: Mapping[str, Mapping[Any, Any]]
    patches: Mapping[str, Any]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, module: nn.Module) -> _Module:
        hooks = {name: dict(value) for name, value in vars(module).items() if name.endswith("_hooks") and isinstance(value, dict)}
        return cls(module, module.training, hooks, _patches(module), attributes_of(module))

    def changes_since(self, before: _Module, name: str) -> Iterator[str]:
        if self.mode != before.mode:
            yield f"{name} was left in {'train()' if self.mode else 'eval()'} mode"
        for sort, hooks in self.hooks.items():
            if hooks != before.hooks.get(sort, {}):
                yield f"a hook of {name} was left behind or taken away ({sort.strip('_')})"
        for method in dict.fromkeys((*before.patches, *self.patches)):
            if self.patches.get(method) is not before.patches.get(method):
                yield f"the method {method} of {name} was left patched"
        for change in changed(before.attributes, self.attributes):
            attribute, happened = change.split(" ", 1)
            yield f"the attribute {attribute} of {name} {happened}"


def _patches(thing: object) -> dict[str, Any]:
    """Return what an object itself has under the name of a method of its class."""
    return {name: value for name, value in vars(thing).items() if callable(getattr(type(thing), name, None))}


def _named(module: str) -> str:
    return module or "the model"


@dataclass(frozen=True)
class _Tensor:
    """A weight or a buffer: its numbers, its gradient, whether it takes one, and its hooks.

    A weight is also compared by which one it is: whoever holds the one before would train or hook what the model no longer uses.
    Families replace buffers as they run.
    """

    sort: str
    tensor: Tensor
    numbers: Tensor
    gradient: Tensor | None
    takes_gradient: bool
    hooks: Mapping[str, Mapping[Any, Any]]

    @classmethod
    def of(cls, tensor: Tensor) -> _Tensor:
        hooks = {name: dict(getattr(tensor, name, None) or {}) for name in _OF_TENSORS}
        gradient = None if tensor.grad is None else tensor.grad.detach().clone()
        sort = "weight" if isinstance(tensor, nn.Parameter) else "buffer"
        return cls(sort, tensor, tensor.detach().clone(), gradient, tensor.requires_grad, hooks)

    def changes_since(self, before: _Tensor, name: str) -> Iterator[str]:
        if not same_numbers(self.numbers, before.numbers):
            yield f"the {self.sort} {name} was changed"
        elif self.sort == "weight" and self.tensor is not before.tensor:
            yield f"the weight {name} was replaced by another of the same numbers"
        if self.takes_gradient != before.takes_gradient:
            yield f"requires_grad of {name} was left {self.takes_gradient}"
        if (self.gradient is None) != (before.gradient is None):
            yield f"the gradient of {name} was {'taken away' if self.gradient is None else 'left behind'}"
        elif self.gradient is not None and before.gradient is not None and not same_numbers(self.gradient, before.gradient):
            yield f"the gradient of {name} was changed"
        if self.hooks != before.hooks:
            yield f"a hook of the {self.sort} {name} was left behind or taken away"
