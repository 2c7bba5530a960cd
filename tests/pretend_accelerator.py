"""Accelerators that are not there: tensors of theirs hold real numbers, and refuse to meet those of another device.

A tensor of a pretended device is a wrapper around one in main memory. Every operation on it runs on what it wraps, and fails, as
it would on hardware, where an operand is on another device. What brings numbers back to the host is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any, Self
from unittest import mock

import torch
from accelerate import dispatch_model
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

from pdtrim_core import load_plugins
from pdtrim_core.api import BlockModel
from pdtrim_core.testing import ByteTokenizer, tiny_transformers

KIND = "lazy"
"""A kind of device that torch can name and index, and that no test machine has."""
FREE = 2**33
aten = torch.ops.aten
COPIES = {aten._to_copy.default, aten.copy_.default, aten.copy.default, aten.set_.source_Tensor}
WAITS = {
    aten._local_scalar_dense.default,
    aten.equal.default,
    aten.nonzero.default,
    aten.is_nonzero.default,
    aten.masked_select.default,
    aten.bincount.default,
    aten._unique2.default,
}
"""Operations that the host must wait for: their result, or its shape, is made of numbers of the device."""
INDEXING = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
"""What takes indices of the host, as CUDA does."""
FROM_DATA = (torch.tensor, torch.as_tensor, torch.Tensor.new_tensor)


class PretendTensor(torch.Tensor):
    """A tensor of a pretended device."""

    held: Tensor

    @staticmethod
    def __new__(cls: type[Self], held: Tensor, device: torch.device) -> Self:
        """Wrap a tensor that is in main memory."""
        made: Self = torch.Tensor._make_wrapper_subclass(
            cls, held.shape, strides=held.stride(), storage_offset=held.storage_offset(), dtype=held.dtype, device=device
        )
        made.held = held
        return made

    def __repr__(self, **_options: Any) -> str:  # type: ignore[override]
        return f"PretendTensor({self.held!r}, {self.device})"

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Run an operation where no accelerator is being pretended, such as when a test compares."""
        del types
        return _run(func, args, kwargs or {}, lambda _: None)


def _indexed(device: Any) -> torch.device:
    found = torch.device(device)
    return torch.device(found.type, found.index or 0) if found.type == KIND else found


def _run(func: Any, args: Any, kwargs: Mapping[str, Any], waits: Callable[[Any], None]) -> Any:
    """Run an operation on what its tensors hold; `waits` is told of one that the host waits for."""
    flat, spec = tree_flatten((args, dict(kwargs)))
    tensors = [one for one in flat if isinstance(one, Tensor)]
    devices = {one.device for one in tensors if one.device.type == KIND}
    wanted = _indexed(kwargs["device"]) if kwargs.get("device") is not None else None
    _check_meeting(func, tensors, devices)
    on_host = wanted is not None and wanted.type != KIND
    if devices and _is_awaited(func, args, tensors, on_host=on_host):
        waits(func)
    if func is aten._fused_sdp_choice.default:
        return 0  # the way that has no kernel of its own
    inner = [one.held if isinstance(one, PretendTensor) else one for one in flat]
    inner_args, inner_kwargs = tree_unflatten(inner, spec)
    if wanted is not None and not on_host:
        inner_kwargs["device"] = torch.device("cpu")
    if func is aten.histc.default:
        inner_args = (inner_args[0].float(), *inner_args[1:])  # the processor has none of whole numbers
    found = func(*inner_args, **inner_kwargs)
    changed = [one.name for one in func._schema.arguments if one.alias_info is not None and one.alias_info.is_write]
    if changed and len(func._schema.returns) <= 1:
        named = {one.name: value for one, value in zip(func._schema.arguments, args, strict=False)} | dict(kwargs)
        return named[changed[0]]
    device = wanted if wanted is not None else next(iter(devices), None)
    return found if device is None or on_host else _wrapped(found, device, func, tensors)


def _check_meeting(func: Any, tensors: list[Tensor], devices: set[torch.device]) -> None:
    """Raise for tensors of several places, but for numbers of the host, and for indices of the host."""
    if func in COPIES or not devices:
        return
    strangers = [one for one in tensors if one.device.type != KIND and one.dim()]
    if func in INDEXING:
        strangers = [one for one in strangers if one is tensors[0] or one.dtype not in (torch.long, torch.bool)]
    if len(devices) > 1 or strangers:
        places = sorted({str(one.device) for one in tensors if one.dim()})
        raise RuntimeError(f"Expected all tensors to be on the same device, but found {' and '.join(places)} ({func})")


def _is_awaited(func: Any, args: Any, tensors: list[Tensor], *, on_host: bool) -> bool:
    if func in INDEXING:
        return any(one.dtype == torch.bool for one in tree_flatten(args[1])[0] if isinstance(one, PretendTensor))
    return func in WAITS or (func in COPIES and on_host) or (func is aten.copy_.default and tensors[0].device.type != KIND)


def _wrapped(found: Any, device: torch.device, func: Any, tensors: list[Tensor]) -> Any:
    """Return the tensors of a result as tensors of a device; a view is an inference tensor where what it is a view of is one."""
    viewed = any(one.alias_info is not None for one in func._schema.arguments) and bool(tensors)
    inference = tensors[0].is_inference() if viewed else torch.is_inference_mode_enabled()
    with torch.inference_mode(inference):
        return tree_map(lambda one: PretendTensor(one, device) if isinstance(one, Tensor) else one, found)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, accelerator: PretendAccelerator) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._accelerator = accelerator

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            # Where no gradients are wanted, these come whole.
            with self:
                found = func.decompose(*args, **(kwargs or {}))
            if found is not NotImplemented:
                return found
        self._accelerator.check(dict(kwargs or {}).get("device"))
        return _run(func, args, kwargs or {}, self._accelerator.note_wait)


class _HostGenerator(torch.Generator):
    """Draws on the host what is drawn for a pretended device."""

    def __new__(cls, device: Any = "cpu") -> Self:
        return super().__new__(  # type: ignore[call-arg]
            cls, "cpu" if torch.device(device).type == KIND else device
        )


class _FromData(TorchFunctionMode):
    """Makes tensors of numbers in Python on the host first, since torch would not ask the operations for them."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = dict(kwargs or {})
        if func is torch.Tensor.tolist:
            return args[0].detach().cpu().tolist() if args[0].device.type == KIND else args[0].tolist()
        if func in (torch.Tensor.__getitem__, torch.Tensor.__setitem__) and args[0].device.type == KIND:
            at = args[1] if isinstance(args[1], tuple) else (args[1],)
            at = tuple(torch.tensor(one, dtype=torch.long) if isinstance(one, list) else one for one in at)
            args = (args[0], at, *args[2:])
        if func in FROM_DATA:
            own = args[0].device if func is torch.Tensor.new_tensor else None
            device = kwargs.pop("device", None) or own
            if device is not None and torch.device(device).type == KIND:
                if func is torch.Tensor.new_tensor:
                    return torch.tensor(*args[1:], **{"dtype": args[0].dtype, **kwargs}).to(device)
                return func(*args, **kwargs).to(device)
            return func(*args, **kwargs, **({} if device is None else {"device": device}))
        return func(*args, **kwargs)


class PretendAccelerator:
    """So many devices that seem to be there inside the context; `waits` counts what the host waited for."""

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.waits = 0
        self.where: list[str] = []
        self._entered = ExitStack()

    @property
    def devices(self) -> list[torch.device]:
        """The devices."""
        return [torch.device(KIND, number) for number in range(self.count)]

    def check(self, device: Any) -> None:
        """Raise for a device beyond the last one."""
        if device is not None and torch.device(device).type == KIND and (torch.device(device).index or 0) >= self.count:
            raise RuntimeError(f"{KIND} error: invalid device ordinal")

    def note_wait(self, func: Any) -> None:
        """Count an operation that the host waits for."""
        self.waits += 1
        self.where.append(str(func))

    def __enter__(self) -> Self:
        module = SimpleNamespace(
            mem_get_info=lambda _device=None: (FREE, FREE),
            memory_allocated=lambda _device=None: 0,
            device_count=lambda: self.count,
            is_available=lambda: True,
            current_device=lambda: 0,
            get_device_name=lambda _device=None: "a pretended accelerator",
            empty_cache=lambda: None,
            synchronize=lambda _device=None: None,
        )
        enter = self._entered.enter_context
        enter(mock.patch.object(torch, KIND, module, create=True))
        enter(mock.patch.object(torch, "Generator", _HostGenerator))
        enter(mock.patch.object(torch.accelerator, "is_available", return_value=True))
        enter(mock.patch.object(torch.accelerator, "current_accelerator", return_value=torch.device(KIND)))
        enter(mock.patch.object(torch.accelerator, "device_count", return_value=self.count))
        enter(_FromData())
        enter(_Operations(self))
        return self

    def __exit__(self, *_: object) -> None:
        self._entered.close()

    @contextmanager
    def counting(self) -> Iterator[list[str]]:
        """Give a list of what the host waits for inside the context."""
        self.where = []
        yield self.where

    def put(self, model: Any, blocks: str) -> Any:
        """Return a model of transformers spread over the devices, block by block from the first device to the last."""
        if self.count == 1:
            return model.to(self.devices[0])
        depth = len(model.get_submodule(blocks))
        last = self.count - 1
        beside = blocks.rpartition(".")[0]
        places: dict[str, Any] = {f"{blocks}.{block}": str(self.devices[block * self.count // depth]) for block in range(depth)}
        tied = model.get_input_embeddings().weight is getattr(model.get_output_embeddings(), "weight", None)
        for name, child in model.named_modules():
            parent = name.rpartition(".")[0]
            if name and parent in ("", beside) and not blocks.startswith(name):
                behind = child is model.get_output_embeddings() and not tied
                places[name] = str(self.devices[last if behind or "norm" in name else 0])
        return dispatch_model(model, places, skip_keys=model._skip_keys_device_placement)

    def tiny(self, family: str = "llama", **settings: Any) -> BlockModel:
        """Return a tiny model on the devices."""
        model = tiny_transformers(family, **settings)
        layout = load_plugins().find_blocks(model, f"tiny {family}")
        return BlockModel(self.put(model, layout.blocks), ByteTokenizer(), layout, name=f"tiny {family}")
