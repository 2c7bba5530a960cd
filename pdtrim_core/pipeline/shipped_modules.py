"""Replacement modules on their way to another process that has the same model: what they share with it stays behind."""

from __future__ import annotations

import io
import pickle
import uuid
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.executor import Executor, Parcel
from pdtrim_core.plan.elements import Element
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan

KEPT_BYTES = 2**30
"""Bytes of modules that are held for later jobs, here and in each worker."""


@dataclass(frozen=True)
class Shipped:
    """A module as bytes, with a name that no other has."""

    name: str
    size: int
    content: Parcel


class UnshippableError(Exception):
    """A module cannot be pickled."""


class Shipping:
    """Ships the modules of plans; one that several plans have, or the same one again, is pickled once."""

    def __init__(self, model: BlockModel, executor: Executor) -> None:
        self._known = _names_in(model)
        self._executor = executor
        self._shipped: OrderedDict[int, tuple[Any, Shipped]] = OrderedDict()

    def ship(self, plan: Plan, modules: Modules) -> dict[Any, Shipped]:
        """Return the modules of a plan, those that it has no use for left out. Raises `UnshippableError`."""
        return {key: self._one(module) for key, module in modules.items() if _serves(key, plan)}

    def _one(self, module: nn.Module) -> Shipped:
        if id(module) not in self._shipped:
            content = io.BytesIO()
            try:
                _Pickler(content, self._known).dump(module)
            except (pickle.PicklingError, TypeError, AttributeError) as error:
                # What pickle raises for a closure, a lock and the like, each in its own way.
                raise UnshippableError from error
            size, name = content.tell(), uuid.uuid4().hex
            # The module is held, since its id would be another's once it is gone.
            self._shipped[id(module)] = (module, Shipped(name, size, self._executor.parcel(content.getvalue())))
            while len(self._shipped) > 1 and sum(one.size for _, one in self._shipped.values()) > KEPT_BYTES:
                self._shipped.popitem(last=False)
        self._shipped.move_to_end(id(module))
        return self._shipped[id(module)][1]


class Arrived:
    """The modules that have arrived in a worker, on its own model; those that were not used for the longest time go first."""

    def __init__(self, model: BlockModel) -> None:
        self._own = {name: thing for thing, name in _things_in(model)}
        self._kept: OrderedDict[str, tuple[int, nn.Module]] = OrderedDict()

    def modules(self, shipped: Mapping[Any, Shipped]) -> dict[Any, nn.Module]:
        """Return the modules of a plan."""
        return {key: self._one(one) for key, one in shipped.items()}

    def _one(self, shipped: Shipped) -> nn.Module:
        if shipped.name not in self._kept:
            module = _Unpickler(io.BytesIO(shipped.content()), self._own).load()
            self._kept[shipped.name] = (shipped.size, module)
            while len(self._kept) > 1 and sum(size for size, _ in self._kept.values()) > KEPT_BYTES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shipped.name)
        return self._kept[shipped.name][1]


def _serves(key: Any, plan: Plan) -> bool:
    """Tell whether a plan runs what is kept under a key."""
    if isinstance(key, Element):
        return key in plan.prefill or key in plan.decode
    return not isinstance(key, LayerOf | FirstTokensOf) or key.plan == plan.unselected


def _things_in(model: BlockModel) -> list[tuple[Any, str]]:
    """Return the modules, parameters and buffers of a model with their names."""
    inner: nn.Module = model.model
    sorts = {
        "module": inner.named_modules(remove_duplicate=False),
        "parameter": inner.named_parameters(remove_duplicate=False),
        "buffer": inner.named_buffers(remove_duplicate=False),
    }
    return [(thing, f"{sort} {name}") for sort, named in sorts.items() for name, thing in named]


def _names_in(model: BlockModel) -> dict[int, str]:
    return {id(thing): name for thing, name in _things_in(model)}


class _Pickler(pickle.Pickler):
    """Writes the name of what a model has in place of it."""

    def __init__(self, file: io.BytesIO, names: Mapping[int, str]) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._names = names

    def persistent_id(self, obj: Any) -> str | None:
        return self._names.get(id(obj)) if isinstance(obj, nn.Module | Tensor) else None


class _Unpickler(pickle.Unpickler):
    """Reads what a `_Pickler` of the same process group wrote."""

    def __init__(self, file: io.BytesIO, own: Mapping[str, Any]) -> None:
        super().__init__(file)
        self._own = own

    def persistent_load(self, pid: str) -> Any:
        return self._own[pid]
