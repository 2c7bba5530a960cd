"""The quantised weights of a pair as files beside its plan, in the form of a checkpoint, and layers that compute with them."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.execution.recovered_weights import STAGES, is_of, prefix_of, saved_layer
from pdtrim_core.execution.stage_modules import Modules, module_of
from pdtrim_core.files.atomic_files import write_whole, writing
from pdtrim_core.files.checksums import sha256_of
from pdtrim_core.files.paths import PathLike
from pdtrim_core.files.reading import UnreadableError, read_json
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.quantized_linear import QuantizedLinear, linears_in, with_linears
from pdtrim_core.model.weights import read_module, write_tensors
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import LayerOf, Plan
from pdtrim_core.plan.plan_file import SavedPlan

FORMATS = "formats"
"""The folder of a run that holds quantised weights."""
RECORD = "formats.json"
"""The file beside them that says what quantised them, and what a checkpoint's config tells of them."""


class Quantizes(Protocol):
    """What gives a linear layer another number format: a `Quantizer`, of which this room knows only these methods."""

    def quantize(self, weight: Tensor, scheme: str) -> dict[str, Tensor]:
        """Return what a checkpoint has in place of a weight."""

    def dequantize(self, stored: Mapping[str, Tensor], scheme: str) -> Tensor:
        """Return the weight that is computed with."""

    def rounds_inputs(self, scheme: str) -> bool:
        """Tell whether a format quantises inputs, too."""

    def round_inputs(self, inputs: Tensor, scheme: str) -> Tensor:
        """Return what a layer computes with of its inputs."""


class NumberFormat(NamedTuple):
    """A format by name, and what gives it to layers."""

    by: Quantizes
    scheme: str


class LayerLinears(NamedTuple):
    """A layer of a stage, what it runs, and its linear layers that count, by their names in it."""

    layer: Layer
    module: nn.Module
    linears: Mapping[str, nn.Linear]


def linears_of(model: BlockModel, plan: Plan, stage: Stage, modules: Modules) -> Iterator[LayerLinears]:
    """Yield the layers of a stage with their linear layers; of those that only compute K/V, the ones that do."""
    for layer in plan.layers(stage, model.block_count):
        module = module_of(model, plan, stage, layer, modules)
        linears = linears_in(module)
        if not layer.runs and model.layout.kv:
            linears = {name: linear for name, linear in linears.items() if name in model.layout.kv}
        yield LayerLinears(layer, module, linears)


def quantized_weights(
    model: BlockModel, plan: Plan, stage: Stage, modules: Modules, number_format: NumberFormat
) -> dict[str, Tensor]:
    """Return the weights of a stage in another number format: the block at which a layer is placed, and the names in it."""
    (by, scheme), found = number_format, {}
    with torch.no_grad():
        for layer, _, linears in linears_of(model, plan, stage, modules):
            for name, linear in linears.items():
                # Scales have the number format in which a checkpoint stores the model, so that it holds what was measured.
                stored_as = model.stored_dtype(f"{model.layout.blocks}.{layer.like}.{name}.weight")
                stored = by.quantize(linear.weight.detach().to(stored_as), scheme)
                found.update({f"{prefix_of(layer)}{name}.{own}": tensor for own, tensor in stored.items()})
    return found


def quantized_layers(
    model: BlockModel, plan: Plan, stage: Stage, modules: Modules, number_format: NumberFormat, *, tensors: Mapping[str, Tensor]
) -> dict[LayerOf, nn.Module]:
    """Return the layers of a stage that compute with quantised weights, which `quantized_weights` gave.

    Raises `PdtrimError` for weights that are not those of the layers.
    """
    by, scheme = number_format
    rounding = functools.partial(by.round_inputs, scheme=scheme) if by.rounds_inputs(scheme) else None
    left, found = dict(tensors), {}
    with torch.no_grad():
        for layer, module, linears in linears_of(model, plan, stage, modules):
            changed = {}
            for name, linear in linears.items():
                prefix = f"{prefix_of(layer)}{name}."
                own = {
                    key.removeprefix(prefix): left.pop(key).to(linear.weight.device) for key in list(left) if _under(key, prefix)
                }
                weight = by.dequantize(own, scheme)
                if weight.shape != linear.weight.shape:
                    raise PdtrimError(f"{prefix}weight has the shape {tuple(weight.shape)}, not {tuple(linear.weight.shape)}")
                changed[name] = QuantizedLinear(linear, weight.to(linear.weight.dtype), scheme, rounding)
            found[LayerOf.at(plan, stage, layer)] = with_linears(module, changed)
    if left:
        raise PdtrimError(f"no layer of the plan has {next(iter(left))}")
    return found


def _under(key: str, prefix: str) -> bool:
    return key.startswith(prefix) and "." not in key.removeprefix(prefix)


def path_of(stage: Stage, folder: Path) -> Path:
    """Return the file of a stage."""
    return folder / f"{stage}.safetensors"


def save_quantized(folder: Path, record: Mapping[str, Any], tensors: Mapping[Stage, Mapping[str, Tensor]]) -> str:
    """Write the quantised weights of the stages that have some, and a record of them; return a hash of all."""
    for stage in STAGES:
        if tensors.get(stage):
            write_tensors(path_of(stage, folder), tensors[stage])
        else:
            path_of(stage, folder).unlink(missing_ok=True)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / RECORD, json.dumps(record, indent=1, sort_keys=True) + "\n")
    return digest_of(folder)


def digest_of(folder: Path) -> str:
    """Return a hash of the quantised weights in a folder and of their record; empty where there are none."""
    files = [folder / RECORD, *(path_of(stage, folder) for stage in STAGES)]
    hashes = [f"{path.name} {sha256_of(path)}" for path in files if path.is_file()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest() if hashes else ""


def check_quantized(saved: SavedPlan, folder: Path) -> None:
    """Raise `PdtrimError` unless a folder has the very weights that the formats of a plan are about."""
    if saved.formats is None:
        return
    found = digest_of(folder)
    if not found:
        raise PdtrimError(
            f"the plan has quantised weights, and they are not in {folder.resolve()}: name the folder of its run, or run the "
            "recipe again"
        )
    if found != saved.formats.weights:
        raise PdtrimError(f"{folder.resolve()} has not the quantised weights of the plan: run the recipe again")


def read_record(folder: Path) -> dict[str, Any]:
    """Return the record of quantised weights. Raises `PdtrimError` where it cannot be read."""
    try:
        found = read_json(folder / RECORD)
        if not isinstance(found, dict) or not isinstance(found.get("stages"), dict):
            raise TypeError("it is no record of formats")
    except (UnreadableError, FileNotFoundError, TypeError) as error:
        raise _damaged(folder / RECORD, error) from error
    return found


def load_quantized(
    saved: SavedPlan, model: BlockModel, modules: Modules, folder: Path, by: Quantizes
) -> dict[LayerOf, nn.Module]:
    """Return the quantised layers of a plan that `save_quantized` wrote; `modules` are those that it has without them.

    Raises `PdtrimError` for a file that is damaged or does not fit.
    """
    check_quantized(saved, folder)
    found: dict[LayerOf, nn.Module] = {}
    for stage in STAGES:
        scheme = saved.formats.of(stage) if saved.formats else None
        if scheme is not None:
            path = path_of(stage, folder)
            try:
                tensors, _ = read_module(path)
                found |= quantized_layers(model, saved.plan, stage, modules, NumberFormat(by, scheme), tensors=tensors)
            except Exception as error:
                # safetensors, torch and quantizers each have errors of their own for a damaged file.
                raise _damaged(path, error) from error
    return found


class QuantizedWeights:
    """The quantised weights of a saved plan, read a layer at a time from the folder of its run.

    Raises `PdtrimError` for a folder that has not the very weights that the plan has.
    """

    def __init__(self, saved: SavedPlan, model: BlockModel, run: PathLike) -> None:
        self._folder = Path(run) / FORMATS
        check_quantized(saved, self._folder)
        self._saved = saved
        self._model = model

    def config(self, stage: Stage) -> dict[str, Any] | None:
        """Return what the config of a stage's checkpoint says of its weights; None where it has the format of the model."""
        if self._saved.formats is None or self._saved.formats.of(stage) is None:
            return None
        found: dict[str, Any] = read_record(self._folder)["stages"][stage]["config"]
        return found

    def of(self, stage: Stage, layer: Layer) -> dict[str, dict[str, Tensor]]:
        """Return for each quantised linear layer of a layer, by its name, what a checkpoint has in place of its weight.

        The layer may also be one of prefill's as `Plan.truncated_prefill` leaves them.
        """
        if self.config(stage) is None:
            return {}
        plan, path = self._saved.plan, path_of(stage, self._folder)
        saved = saved_layer(plan, stage, layer, self._model.block_count)
        found: dict[str, dict[str, Tensor]] = {}
        try:
            with safe_open(path, framework="pt") as opened:
                for key in [key for key in opened.keys() if is_of(key, saved)]:  # noqa: SIM118 - no mapping
                    linear, _, own = key.removeprefix(prefix_of(saved)).rpartition(".")
                    if layer.runs or not self._model.layout.kv or linear in self._model.layout.kv:
                        found.setdefault(linear, {})[own] = opened.get_tensor(key).clone()
        except Exception as error:
            raise _damaged(path, error) from error
        return found


def _damaged(path: Path, error: Exception) -> PdtrimError:
    return PdtrimError(f"the quantised weights {path} are damaged or of another plan ({reason_of(error)}): run the recipe again")
