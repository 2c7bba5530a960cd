"""Recovered weights as files: what is written comes back, and what is damaged, missing or of another plan is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors import safe_open

from pdtrim_core.api import Drop, KvOnly, LayerOf, Merge, PdtrimError, Plan, RecoveredWeights, Removal, SavedPlan, Shrink
from pdtrim_core.execution.recovered_weights import (
    RECOVERED,
    STAGES,
    check_recovered,
    digest_of,
    load_recovered,
    path_of,
    save_recovered,
)
from pdtrim_core.execution.stage_modules import changed_weights, module_of, removed_module_of, steps_of, with_weights
from pdtrim_core.model.weights import write_tensors
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import grown
from tests.unit.execution.test_recovered_layers import recovered

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pdtrim_core.api import BlockModel

MERGE = Merge(3, 2)
PLANS: dict[str, Plan] = {
    "drops": Plan(Removal([Drop(1)]), Removal([Drop(1), Drop(3)])),
    "K/V alone": Plan(Removal([KvOnly(4)]), Removal([Drop(2)])),
    "a merge and its shadow": Plan(Removal(), Removal([MERGE])),
    "a merge in both": Plan.unified(Removal([MERGE])),
    "a merge whose K/V alone are made": Plan(Removal([KvOnly(2)]), Removal([MERGE])),
    "a shrunk block": Plan(Removal(), Removal([Shrink(4, "mlp", (0, 3)), Shrink(4, "attention", (1,)), Drop(0)])),
}


def made(model: BlockModel, plan: Plan) -> dict[Any, nn.Module]:
    """The modules of a plan, all layers of both stages recovered."""
    merges = {e: grown(model, e) for e in dict.fromkeys((*plan.prefill, *plan.decode)) if isinstance(e, Merge)}
    return recovered(model, plan, merges, kv=True)


def elements(modules: Mapping[Any, nn.Module]) -> dict[Any, nn.Module]:
    return {key: module for key, module in modules.items() if not isinstance(key, LayerOf)}


def weights_of(model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module]) -> dict[str, torch.Tensor]:
    return {
        f"{stage} {number} {name}": weight
        for stage in STAGES
        for number, step in enumerate(steps_of(model, plan, stage, modules))
        for name, weight in step.module.named_parameters()
    }


def saved_in(run: Path, model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module]) -> SavedPlan:
    """Write recovered weights as a run does, and return the plan that names them."""
    save_recovered(plan, model, modules, run / RECOVERED)
    return SavedPlan(plan, model.name, model.fingerprint, model.block_count, recovered=digest_of(run / RECOVERED))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", PLANS)
def test_what_was_written_comes_back_number_by_number(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model, plan = tiny_llama(dtype=dtype), PLANS[name]
    modules = made(model, plan)
    save_recovered(plan, model, modules, tmp_path)
    back = {**elements(modules), **load_recovered(plan, model, elements(modules), tmp_path)}
    assert {key for key in back if isinstance(key, LayerOf)} == {key for key in modules if isinstance(key, LayerOf)}
    wanted, found = weights_of(model, plan, modules), weights_of(model, plan, back)
    assert wanted.keys() == found.keys()
    assert [key for key in wanted if not torch.equal(wanted[key], found[key]) or found[key].dtype != dtype] == []


@pytest.mark.parametrize("name", PLANS)
def test_a_layer_is_read_alone_and_is_the_same(name: str, tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS[name]
    modules = made(model, plan)
    weights = RecoveredWeights(saved_in(tmp_path, model, plan, modules), model, tmp_path)
    for stage in STAGES:
        for layer in plan.layers(stage, model.block_count):
            left = removed_module_of(model, layer, modules)
            found, wanted = weights.given_to(left, stage, layer), module_of(model, plan, stage, layer, modules)
            kept = ("",) if layer.runs else model.layout.kv
            changed = {key: weight for key, weight in changed_weights(wanted, left).items() if key.startswith(tuple(kept))}
            assert changed
            assert changed_weights(found, left).keys() == changed.keys()
            assert all(torch.equal(weight, changed[key]) for key, weight in changed_weights(found, left).items())


LAST: dict[str, Plan] = {
    "a block": Plan(Removal(), Removal([Drop(5)])),
    "a merge, whose K/V a shadow makes": Plan(Removal(), Removal([Merge(5, 4)])),
    "a merge with the K/V of the block that it keeps": Plan(Removal(), Removal([Merge(4, 5, "frozen")])),
    "a block that lost channels": Plan(Removal(), Removal([Shrink(5, "mlp", (0, 3))])),
    "a block whose K/V alone are made": Plan(Removal([KvOnly(5)]), Removal([Drop(2)])),
}


@pytest.mark.parametrize("name", LAST)
def test_a_truncated_prefill_has_the_kv_weights_of_the_layer_that_fed_decodes_last(name: str, tmp_path: Path) -> None:
    model, plan = tiny_llama(), LAST[name]
    modules = made(model, plan)
    weights = RecoveredWeights(saved_in(tmp_path, model, plan, modules), model, tmp_path)
    last = plan.truncated_prefill(model.block_count).layers("prefill", model.block_count)[-1]
    assert last.state == "kv-only"
    feeding = next(one for one in plan.layers("prefill", model.block_count) if one.kv_slot == last.kv_slot)
    found = weights.given_to(removed_module_of(model, last, modules), "prefill", last)
    wanted = module_of(model, plan, "prefill", feeding, modules)
    for part in model.layout.kv:
        for key, weight in wanted.get_submodule(part).named_parameters():
            assert torch.equal(found.get_submodule(part).get_parameter(key), weight)
    # What does not make K/V is as the removal left it: nothing runs it.
    assert found.get_parameter("mlp.down_proj.weight") is removed_module_of(model, last, modules).get_parameter(
        "mlp.down_proj.weight"
    )


def test_only_what_changed_is_in_the_files_and_a_stage_without_any_has_none(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["drops"]
    (_, layer, *_) = plan.layers("decode", model.block_count)
    name = "mlp.down_proj.weight"
    changed = with_weights(model.blocks[layer.block], {name: model.blocks[layer.block].get_parameter(name) * 2})
    save_recovered(plan, model, made(model, plan), tmp_path)
    assert path_of("prefill", tmp_path).is_file()
    save_recovered(plan, model, {LayerOf.at(plan, "decode", layer): changed}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["decode.safetensors"]
    with safe_open(path_of("decode", tmp_path), "pt") as weights:
        assert list(weights.keys()) == [f"{layer.block}.{name}"]


def test_the_weights_have_the_format_that_the_model_is_in_now(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["K/V alone"]
    save_recovered(plan, model, made(model, plan), tmp_path)
    half = tiny_llama(dtype=torch.bfloat16)
    found = load_recovered(plan, half, {}, tmp_path)
    assert {weight.dtype for module in found.values() for weight in module.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("stage", STAGES)
def test_a_damaged_file_is_named(stage: Any, tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["drops"]
    save_recovered(plan, model, made(model, plan), tmp_path)
    path = path_of(stage, tmp_path)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(PdtrimError) as caught:
        load_recovered(plan, model, {}, tmp_path)
    assert str(caught.value) == (
        f"the recovered weights {path} are damaged or of another plan (its checksum is another one): run the recipe again"
    )
    path.write_bytes(bytes(data)[:100])
    with pytest.raises(PdtrimError, match=f"the recovered weights {path} are damaged"):
        load_recovered(plan, model, {}, tmp_path)


def test_weights_of_another_plan_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    save_recovered(PLANS["drops"], model, made(model, PLANS["drops"]), tmp_path)
    with pytest.raises(PdtrimError, match=r"of another plan \(no layer of the plan has 2\.\S+\): run the recipe again"):
        load_recovered(PLANS["K/V alone"], model, {}, tmp_path)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["drops"]
    write_tensors(path_of("decode", tmp_path), {"0.mlp.down_proj.weight": torch.zeros(3, 3)})
    with pytest.raises(PdtrimError, match=r"the weight mlp\.down_proj\.weight of shape \(3, 3\)"):
        load_recovered(plan, model, {}, tmp_path)


def test_a_shadow_and_the_block_beside_it_are_told_apart(tmp_path: Path) -> None:
    model, plan = tiny_model("qwen3"), PLANS["a merge and its shadow"]
    modules = made(model, plan)
    save_recovered(plan, model, modules, tmp_path)
    with safe_open(path_of("prefill", tmp_path), "pt") as weights:
        names = {name for name in weights.keys() if name.startswith("2.") and "k_proj" in name}  # noqa: SIM118 - no mapping
    assert names == {"2.shadow.self_attn.k_proj.weight", "2.self_attn.k_proj.weight"}
    found = load_recovered(plan, model, elements(modules), tmp_path)
    for shadow in (True, False):
        key = LayerOf(plan, "prefill", 2, shadow)
        assert torch.equal(
            found[key].get_parameter("self_attn.k_proj.weight"), modules[key].get_parameter("self_attn.k_proj.weight")
        )


@pytest.mark.parametrize("way", ["no folder", "one file is gone", "another run's"])
def test_a_folder_without_the_very_weights_of_the_plan_is_refused(way: str, tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["drops"]
    saved, folder = saved_in(tmp_path, model, plan, made(model, plan)), tmp_path / RECOVERED
    check_recovered(saved, folder)
    if way == "no folder":
        for stage in STAGES:
            path_of(stage, folder).unlink()
        folder.rmdir()
    elif way == "one file is gone":
        path_of("prefill", folder).unlink()
    else:
        save_recovered(plan, model, made(tiny_llama(seed=1), plan), folder)
    with pytest.raises(PdtrimError) as caught:
        RecoveredWeights(saved, model, tmp_path)
    assert str(caught.value) == (
        f"the plan has recovered weights, and they are not in {folder}: name the folder of its run, or run the recipe again"
        if way == "no folder"
        else f"{folder} has not the weights that the plan was recovered with: run the recipe again"
    )


def test_a_plan_that_nothing_recovered_needs_no_folder(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PLANS["drops"]
    saved = replace(saved_in(tmp_path / "other", model, plan, {}), recovered="")
    weights = RecoveredWeights(saved, model, tmp_path)
    for layer in plan.layers("decode", model.block_count):
        assert weights.given_to(model.blocks[layer.block], "decode", layer) is model.blocks[layer.block]
