"""The trained or computed modules of a plan as files: merged blocks, and the projections out of shrunk parts."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.paths import PathLike
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.plan.elements import Merge, Removal, Shrink
from pdtrim_core.plan.plan import Plan

MODULES, REPLACED = "merges", "replaced"
"""The folders of a run that hold a plan's modules, and the weights of a model that replaced the dense one."""


def save_modules(plan: Plan, modules: Mapping[Merge | Shrink, nn.Module], folder: Path) -> None:
    """Write those modules that a plan needs, each into a file of its own."""
    for element, module in modules_of(plan, modules).items():
        write_module(path_of(element, folder), module)


def modules_of(plan: Plan, modules: Mapping[Merge | Shrink, nn.Module]) -> dict[Merge | Shrink, nn.Module]:
    """Return those of some modules that a plan needs."""
    return {element: modules[element] for element in _elements(plan) if element in modules}


def load_modules(plan: Plan, model: BlockModel, folder: PathLike) -> dict[Merge | Shrink, nn.Module]:
    """Return the modules of a plan that `save_modules` or a run wrote, in the number format and on the device of the model.

    A shrink without a file has the dense projection less its columns. Raises `PdtrimError` for a merge without a file, and
    for a file that is damaged or does not fit the model.
    """
    modules: dict[Merge | Shrink, nn.Module] = {}
    for element in _elements(plan):
        path = path_of(element, Path(folder))
        if path.is_file():
            modules[element] = _loaded(element, model, path)
        elif isinstance(element, Merge):
            raise PdtrimError(f"the plan merges {element}, but {path} does not exist: run its recipe again")
    return modules


def added_biases(removal: Removal, model: BlockModel, modules: Mapping[Merge | Shrink, nn.Module]) -> int:
    """Return how many numbers a stage has in biases of projections that have none in the dense model."""
    added = 0
    for element in removal:
        bias = getattr(modules.get(element), "bias", None) if isinstance(element, Shrink) else None
        if isinstance(element, Shrink) and isinstance(bias, nn.Parameter):
            dense = model.units(element.block).projections(element.part)[-1]
            added += bias.numel() if dense.bias is None else 0
    return added


def save_replaced(replaced: BlockModel, dense: BlockModel, folder: Path) -> None:
    """Write the weights of a model that replaced the dense one, a file a block and one for the rest; not those they share."""
    shared = {tensor.data_ptr() for tensor in dense.model.parameters()}
    own = {name: tensor for name, tensor in replaced.model.named_parameters() if tensor.data_ptr() not in shared}
    prefixes = [f"{replaced.layout.blocks}.{index}." for index in range(replaced.block_count)]
    for number, prefix in enumerate(prefixes):
        write_tensors(
            folder / f"block-{number}.safetensors", {name: own.pop(name) for name in list(own) if name.startswith(prefix)}
        )
    write_tensors(folder / "rest.safetensors", own)


def read_replaced(folder: Path) -> dict[str, Tensor]:
    """Return the weights that `save_replaced` wrote, by their names. Raises `PdtrimError` where they are not whole."""
    rest = folder / "rest.safetensors"
    if not rest.is_file():
        raise PdtrimError(
            f"{rest} does not exist: the run kept no weights of the model that replaced the dense one; run it again"
        )
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            weights.update(read_module(path)[0])
        except Exception as error:
            raise PdtrimError(f"the stored weights {path} are damaged ({reason_of(error)}): run the recipe again") from error
    return weights


def path_of(element: Merge | Shrink, folder: Path) -> Path:
    """Return the file of an element's module: the first and last block of a merge, or a block and its part."""
    name = f"{element.blocks[0]}-{element.blocks[-1]}" if isinstance(element, Merge) else f"{element.block}.{element.part}"
    return folder / f"{name}.safetensors"


def write_module(path: Path, module: nn.Module, record: Mapping[str, Any] | None = None) -> None:
    """Write the weights of a module, and what is to be remembered of it."""
    write_tensors(path, module.state_dict(), record)


def write_tensors(path: PathLike, tensors: Mapping[str, Tensor], record: Mapping[str, Any] | None = None) -> None:
    """Write tensors by name, and what is to be remembered of them, so that `read_module` finds both."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    path = Path(path)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    # Not safetensors' own file writing, whose error for a full disk is no OSError. A block is small enough for memory.
    # One entry, since safetensors writes several in any order.
    said = json.dumps({"record": dict(record or {}), "sha256": _checksum(tensors, record or {})})
    write_whole(path, save(tensors, metadata={"pdtrim": said}))


def read_module(path: PathLike) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the weights and the record that `write_module` wrote.

    Errors for a damaged file are those of whoever found it: safetensors, or a `ValueError` where a bit is wrong. Files of version
    0.1 have no checksum.
    """
    with safe_open(path, framework="pt") as opened:
        # In memory of their own, which is aligned: products with weights that begin anywhere in a mapped file may round unlike.
        tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no mapping
        metadata = opened.metadata()
    if metadata.keys() == {"record"}:
        return tensors, json.loads(metadata["record"])
    said = json.loads(metadata["pdtrim"])
    if said["sha256"] != _checksum(tensors, said["record"]):
        raise ValueError("its checksum is another one")
    return tensors, said["record"]


def _checksum(tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> str:
    """Return a SHA-256 of tensors with their names, formats and shapes, and of what is remembered of them."""
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _loaded(element: Merge | Shrink, model: BlockModel, path: Path) -> nn.Module:
    try:
        tensors, _ = read_module(path)
        module = copy.deepcopy(model.blocks[element.keep]) if isinstance(element, Merge) else _projection(element, model, tensors)
        module.load_state_dict(tensors)
    except Exception as error:
        # safetensors and torch each have errors of their own for a damaged file.
        raise PdtrimError(
            f"the stored module {path} is damaged or of another model ({reason_of(error)}): run its recipe again"
        ) from error
    return module.requires_grad_(requires_grad=False)


def _projection(shrink: Shrink, model: BlockModel, tensors: Mapping[str, Tensor]) -> nn.Module:
    """Return a projection out of a part less the units of a shrink, its weights not yet set."""
    units = model.units(shrink.block)
    dense = units.projections(shrink.part)[-1]
    assert isinstance(dense, nn.Linear)
    kept = dense.in_features - len(units.numbers(dense, shrink.part, shrink.units, out=True))
    # No first weights are drawn for a module on the meta device.
    thin = nn.Linear(kept, dense.out_features, bias="bias" in tensors, device="meta", dtype=dense.weight.dtype)
    return thin.to_empty(device=dense.weight.device).train(dense.training)


def _elements(plan: Plan) -> list[Merge | Shrink]:
    """Return the elements of either stage that may have a module, each once."""
    return [e for e in dict.fromkeys((*plan.prefill, *plan.decode)) if isinstance(e, Merge | Shrink)]
