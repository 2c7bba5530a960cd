"""What recovery changed as files beside a plan: for each stage the weights that are not those of the removal, and no others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.execution.first_tokens import FirstTokens, depths_of, first_tokens_in
from pdtrim_core.execution.stage_modules import Modules, changed_weights, module_of, removed_module_of, with_weights
from pdtrim_core.files.checksums import sha256_of
from pdtrim_core.files.paths import PathLike
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.model.weights import read_module, write_tensors
from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.layers import Layer
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf, Plan, RecoveredPart
from pdtrim_core.plan.plan_file import SavedPlan

RECOVERED = "recovered"
"""The folder of a run that holds what recovery changed."""
STAGES: tuple[Stage, ...] = ("prefill", "decode")
FIRST_TOKENS = "first_tokens."
"""What the tensors of prefill's table of first tokens begin with in its file."""


def path_of(stage: Stage, folder: Path) -> Path:
    """Return the file of a stage."""
    return folder / f"{stage}.safetensors"


def save_recovered(plan: Plan, model: BlockModel, modules: Modules, folder: Path) -> None:
    """Write what is recovered of each stage of a plan; a stage without any gets no file."""
    for stage in STAGES:
        tensors = {**recovered_weights(plan, model, modules, stage), **recovered_tables(plan, modules, stage)}
        if tensors:
            write_tensors(path_of(stage, folder), tensors)
        else:
            path_of(stage, folder).unlink(missing_ok=True)


def recovered_weights(plan: Plan, model: BlockModel, modules: Modules, stage: Stage) -> dict[str, Tensor]:
    """Return the weights of a stage that recovery changed: the block at which a layer is placed, and the name in it."""
    found = {}
    for layer in plan.layers(stage, model.block_count):
        if LayerOf.at(plan, stage, layer) in modules:
            changed = changed_weights(module_of(model, plan, stage, layer, modules), removed_module_of(model, layer, modules))
            found.update({f"{prefix_of(layer)}{name}": weight for name, weight in changed.items()})
    return found


def recovered_tables(plan: Plan, modules: Modules, stage: Stage) -> dict[str, Tensor]:
    """Return the tensors of the table of first tokens that a stage has."""
    table = first_tokens_in(modules, plan) if stage == "prefill" else None
    return {} if table is None else {f"{FIRST_TOKENS}{name}": tensor for name, tensor in table.state_dict().items()}


def load_recovered(plan: Plan, model: BlockModel, modules: Modules, folder: Path) -> dict[RecoveredPart, nn.Module]:
    """Return the recovered parts of a plan that `save_recovered` wrote, in the number format and on the device of the model.

    `modules` are those of the plan's elements. Raises `PdtrimError` for a file that is damaged or does not fit.
    """
    found: dict[RecoveredPart, nn.Module] = {}
    for stage in STAGES:
        path = path_of(stage, folder)
        if not path.is_file():
            continue
        try:
            tensors, _ = read_module(path)
            for layer in plan.layers(stage, model.block_count):
                own = {name: tensors.pop(name) for name in list(tensors) if is_of(name, layer)}
                if own:
                    start = removed_module_of(model, layer, modules)
                    found[LayerOf.at(plan, stage, layer)] = with_weights(start, _like(start, own, prefix_of(layer)))
            of_table = [name for name in tensors if name.startswith(FIRST_TOKENS)]
            if of_table:
                table = {name.removeprefix(FIRST_TOKENS): tensors.pop(name) for name in of_table}
                found[FirstTokensOf(plan)] = _table(plan, model, table)
            if tensors:
                raise PdtrimError(f"no layer of the plan has {next(iter(tensors))}")
        except Exception as error:
            # safetensors and torch each have errors of their own for a damaged file.
            raise _damaged(path, error) from error
    return found


def digest_of(folder: Path) -> str:
    """Return a hash of what recovery changed, as it lies in a folder; empty where it changed nothing."""
    files = [path_of(stage, folder) for stage in STAGES]
    hashes = [f"{path.name} {sha256_of(path)}" for path in files if path.is_file()]
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest() if hashes else ""


def check_recovered(saved: SavedPlan, folder: Path) -> None:
    """Raise `PdtrimError` unless a folder has the very weights that a plan was recovered with."""
    if not saved.recovered:
        return
    found = digest_of(folder)
    if not found:
        raise PdtrimError(
            f"the plan has recovered weights, and they are not in {folder.resolve()}: name the folder of its run, or run the "
            "recipe again"
        )
    if found != saved.recovered:
        raise PdtrimError(f"{folder.resolve()} has not the weights that the plan was recovered with: run the recipe again")


class RecoveredWeights:
    """What recovery changed of the layers of a saved plan, read a layer at a time from the folder of its run.

    Raises `PdtrimError` for a folder that has not the very weights that the plan was recovered with.
    """

    def __init__(self, saved: SavedPlan, model: BlockModel, run: PathLike) -> None:
        self._folder = Path(run) / RECOVERED
        check_recovered(saved, self._folder)
        self._plan = saved.plan if saved.recovered else None
        self._model = model

    def given_to(self, module: nn.Module, stage: Stage, layer: Layer) -> nn.Module:
        """Return a layer's module with what recovery made of it; the module itself where it made nothing of that layer.

        The layer may also be one of prefill's as `Plan.truncated_prefill` leaves them: of those that only compute the K/V of
        decode's layer, what computes them is taken.
        """
        path = path_of(stage, self._folder)
        if self._plan is None or not path.is_file():
            return module
        saved = saved_layer(self._plan, stage, layer, self._model.block_count)
        wanted = () if layer.runs else tuple(f"{prefix_of(saved)}{part}." for part in self._model.layout.kv)
        try:
            with safe_open(path, framework="pt") as opened:
                names = [name for name in opened.keys() if is_of(name, saved)]  # noqa: SIM118 - no mapping
                # In memory of their own, which is aligned, as `read_module` has them.
                own = {name: opened.get_tensor(name).clone() for name in names if layer.runs or name.startswith(wanted)}
            return with_weights(module, _like(module, own, prefix_of(saved))) if own else module
        except Exception as error:
            raise _damaged(path, error) from error


def saved_layer(plan: Plan, stage: Stage, layer: Layer, block_count: int) -> Layer:
    """Return the layer of a plan that a layer is, which may be one of prefill's as `Plan.truncated_prefill` leaves them.

    It feeds the same layer of decode; where K/V do not tell, it is the one that runs there.
    """
    layers = plan.layers(stage, block_count)
    if layer.runs:
        return next(one for one in layers if one.runs and one.block == layer.block)
    return next(one for one in layers if one.kv_slot == layer.kv_slot)


def read_first_tokens(plan: Plan, model: BlockModel, run: PathLike) -> FirstTokens | None:
    """Return the table of first tokens that recovery gave to a plan, from the folder of its run; None where it gave none.

    Raises `PdtrimError` for a file that is damaged or does not fit.
    """
    path = path_of("prefill", Path(run) / RECOVERED)
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as opened:
            names = [name for name in opened.keys() if name.startswith(FIRST_TOKENS)]  # noqa: SIM118 - no mapping
            tensors = {name.removeprefix(FIRST_TOKENS): opened.get_tensor(name).clone() for name in names}
        return _table(plan, model, tensors) if tensors else None
    except Exception as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> PdtrimError:
    return PdtrimError(f"the recovered weights {path} are damaged or of another plan ({reason_of(error)}): run the recipe again")


def _table(plan: Plan, model: BlockModel, tensors: Mapping[str, Tensor]) -> FirstTokens:
    """Return a table of first tokens from its tensors."""
    states_LKD = tensors["states"].to(model.device, model.dtype)
    table = FirstTokens(tensors["tokens"].to(model.device), tensors["depths"], states_LKD)
    if not all(map(table.covers, depths_of(plan, model.block_count))):
        raise PdtrimError("its table of first tokens is of other layers")
    return table


def prefix_of(layer: Layer) -> str:
    """Return what the names of a layer's weights begin with in the file of a stage."""
    return f"{layer.block}.shadow." if layer.state == "shadow" else f"{layer.block}."


def is_of(name: str, layer: Layer) -> bool:
    """Tell whether a weight in the file of a stage is one of a layer."""
    return name.startswith(prefix_of(layer)) and (layer.state == "shadow" or not name.startswith(f"{layer.block}.shadow."))


def _like(module: nn.Module, tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return tensors by their names in a module, in the number format and on the device of what they replace."""
    before = dict(module.named_parameters())
    found = {}
    for name, tensor in tensors.items():
        own = before.get(name.removeprefix(prefix))
        found[name.removeprefix(prefix)] = tensor if own is None else tensor.to(own.device, own.dtype)
    return found


def finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Return the name of the first tensor that holds a NaN or an infinity; None where all are finite."""
    return next((name for name, tensor in tensors.items() if not torch.isfinite(tensor).all()), None)
