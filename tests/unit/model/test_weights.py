"""Modules of a plan on disk: what is read back computes the same, and what cannot be read is named."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from pdtrim_core.api import BlockModel, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.weights import load_modules, read_module, save_modules, write_module
from pdtrim_core.testing import tiny_llama
from tests.unit.execution.test_staged_model import some_items

pytestmark = pytest.mark.numeric

MERGE, HEAD, CHANNELS = Merge(2, 4), Shrink(0, "attention", (1,)), Shrink(0, "mlp", (0, 3, 17, 40))
REMOVAL = Removal([MERGE, HEAD, CHANNELS])


def made_by_a_pruner(model: BlockModel) -> dict[Merge | Shrink, nn.Module]:
    """Return a block for the merge, and a projection with a bias, which the dense one has not, for the channels alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        merged = copy.deepcopy(model.blocks[2])
        for parameter in merged.parameters():
            parameter.add_(torch.randn(parameter.shape), alpha=0.1)
        return {MERGE: merged, CHANNELS: nn.Linear(44, 32).requires_grad_(requires_grad=False)}


@pytest.mark.parametrize("plan", [Plan.unified(REMOVAL), Plan(decode=REMOVAL), Plan(REMOVAL.without(CHANNELS), REMOVAL)])
def test_what_is_loaded_computes_what_was_saved(plan: Plan, tmp_path: Path) -> None:
    model = tiny_llama()
    modules = made_by_a_pruner(model)
    save_modules(plan, modules, tmp_path / "merges")
    assert sorted(path.name for path in (tmp_path / "merges").iterdir()) == ["0.mlp.safetensors", "2-4.safetensors"]
    state = torch.random.get_rng_state()
    loaded = load_modules(plan, model, tmp_path / "merges")
    assert torch.equal(torch.random.get_rng_state(), state), "loading draws random numbers"
    assert set(loaded) == {MERGE, CHANNELS}
    assert not any(parameter.requires_grad for module in loaded.values() for parameter in module.parameters())
    found, expected = (
        StagedModel(PrefixCache(model), plan, replacements).loglikelihoods(some_items()) for replacements in (loaded, modules)
    )
    assert found == expected
    assert found != StagedModel(PrefixCache(model), plan, {MERGE: model.blocks[2]}).loglikelihoods(some_items())


def test_weights_that_are_read_lie_as_aligned_as_those_that_torch_makes(tmp_path: Path) -> None:
    # The bias of three numbers puts what stands behind it in the file at an address that is no multiple of 64.
    write_module(tmp_path / "odd.safetensors", nn.Sequential(nn.Linear(4, 3), nn.Linear(32, 32)))
    weights, _ = read_module(tmp_path / "odd.safetensors")
    assert {weight.data_ptr() % 64 for weight in weights.values()} == {0}


def test_modules_take_the_number_format_of_the_model(tmp_path: Path) -> None:
    plan = Plan.unified(REMOVAL)
    save_modules(plan, made_by_a_pruner(tiny_llama()), tmp_path)
    loaded = load_modules(plan, tiny_llama(dtype=torch.bfloat16), tmp_path)
    assert {parameter.dtype for module in loaded.values() for parameter in module.parameters()} == {torch.bfloat16}


def test_a_plan_without_modules_of_its_own_needs_no_folder(tmp_path: Path) -> None:
    assert load_modules(Plan.unified(Removal([HEAD])), tiny_llama(), tmp_path / "none") == {}


def test_a_merge_without_its_block_is_named(tmp_path: Path) -> None:
    with pytest.raises(PdtrimError) as caught:
        load_modules(Plan.unified(REMOVAL), tiny_llama(), tmp_path)
    assert str(caught.value) == f"the plan merges 2+3+4, but {tmp_path}/2-4.safetensors does not exist: run its recipe again"


@pytest.mark.parametrize("element", [MERGE, CHANNELS])
@pytest.mark.parametrize("damage", ["bytes", "of another model"])
def test_a_module_that_cannot_be_read_is_named(damage: str, element: Merge | Shrink, tmp_path: Path) -> None:
    plan = Plan.unified(Removal([element]))
    save_modules(plan, made_by_a_pruner(tiny_llama()), tmp_path)
    (path,) = tmp_path.iterdir()
    model = tiny_llama()
    if damage == "bytes":
        path.write_bytes(b"not safetensors")
    else:
        model = tiny_llama(hidden_size=64, intermediate_size=64)
    with pytest.raises(
        PdtrimError, match=rf"^the stored module {path} is damaged or of another model \((?s:.*)\): run its recipe"
    ):
        load_modules(plan, model, tmp_path)
