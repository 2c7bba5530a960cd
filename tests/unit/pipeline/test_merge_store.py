"""Merging: trained blocks come nearer to the pair, are found again, and run in both stages."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Distiller, Merge, PdtrimError, Plan, PluginError, Removal, Student, TeacherBatches
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.merge_store import MergeStore
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_plugins.distillers import CosineLoss, LogitKl, Mse, MseCosine
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

pytestmark = pytest.mark.numeric

SEQUENCES = [[(7 * i + 3 * j) % 256 for j in range(64)] for i in range(8)]
PAIR = Merge(keep=3, drop=2)


def store(folder: Path, distiller: Distiller, **model: Any) -> MergeStore:
    return MergeStore(tiny_llama(**model), distiller, SEQUENCES, folder, label="distiller 'x'")


@pytest.mark.parametrize("distiller", [Mse, CosineLoss, MseCosine, LogitKl])
def test_every_loss_falls(distiller: type[Distiller], tmp_path: Path) -> None:
    options = distiller.model_validate({"lr": 1e-3, "epochs": 6})
    _, record = store(tmp_path, options).trained(PAIR)
    assert len(record.losses) == 6
    assert record.losses[-1] < record.losses[0]


@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_training_brings_the_block_nearer_to_the_pair(kv: str, tmp_path: Path) -> None:
    merges = store(tmp_path, Mse.model_validate({"lr": 1e-3, "epochs": 20, "kv": kv}))
    _, record = merges.trained(merges.merge_of(PAIR))
    assert record.trained < 0.85 * record.untrained


def test_more_epochs_and_a_larger_step_train_more(tmp_path: Path) -> None:
    few, many, tiny = (
        store(tmp_path, Mse(lr=lr, epochs=epochs)).trained(PAIR)[1].trained for lr, epochs in ((1e-3, 2), (1e-3, 12), (1e-6, 2))
    )
    assert many < few < tiny


def test_the_cosine_weight_changes_what_is_learnt(tmp_path: Path) -> None:
    light, heavy = (
        store(tmp_path, MseCosine(lr=1e-3, epochs=3, cosine_weight=weight)).trained(PAIR)[1].trained for weight in (0.01, 100)
    )
    assert light != heavy


def test_merging_a_block_that_is_the_identity_costs_nothing(tmp_path: Path) -> None:
    merges = store(tmp_path, Mse(epochs=1), silent={2})
    _, record = merges.trained(Merge(keep=3, drop=2))
    assert record.untrained == pytest.approx(0.0, abs=1e-10)


def test_a_trained_merge_is_found_again(tmp_path: Path) -> None:
    first, record = store(tmp_path, Mse(lr=1e-3, epochs=2)).trained(PAIR)
    again, same = store(tmp_path, Mse(lr=1e-3, epochs=2)).trained(PAIR)
    assert same == record
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", ["weights", "options", "data", "pair"])
def test_anything_that_matters_makes_another_merge(change: str, tmp_path: Path) -> None:
    store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)
    if change == "weights":
        store(tmp_path, Mse(lr=1e-3, epochs=1), seed=1).trained(PAIR)
    elif change == "options":
        store(tmp_path, Mse(lr=2e-3, epochs=1)).trained(PAIR)
    elif change == "data":
        MergeStore(tiny_llama(), Mse(lr=1e-3, epochs=1), SEQUENCES[1:], tmp_path, label="x").trained(PAIR)
    else:
        store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(Merge(3, 4))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_store_is_named(tmp_path: Path) -> None:
    store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"not safetensors")
    with pytest.raises(PdtrimError, match=r"^the stored merge .* is damaged \(.*\): remove it, and it is trained again$"):
        store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)


class Diverges(Distiller):
    """A distiller whose loss is not a number."""

    name = "diverges"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        yield 1.0
        yield float("nan")


def test_a_loss_that_is_not_a_number_is_named_and_nothing_is_stored(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        store(tmp_path, Diverges()).trained(PAIR)
    assert str(caught.value) == "distiller 'x': the loss of the merge 2+3 became nan in epoch 2: lower its lr"
    assert not list(tmp_path.iterdir())


def test_training_leaves_the_dense_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    MergeStore(model, LogitKl(lr=1e-3, epochs=1), SEQUENCES, tmp_path, label="x").trained(PAIR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gemma3"])
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_a_trained_merge_in_decode_alone_agrees_with_two_phases(family: str, kv: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    merges = MergeStore(model, Mse.model_validate({"lr": 1e-2, "epochs": 3, "kv": kv}), SEQUENCES, tmp_path, label="x")
    merge = merges.merge_of(PAIR)
    module, _ = merges.trained(merge)
    staged = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), Plan(decode=Removal([merge])), {merge: module})
    items = some_items()[:3]
    for item, sums, expected in zip(items, staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
        assert sums == pytest.approx(expected, abs=1e-4 * max(map(len, item.choices)))


@pytest.mark.parametrize("family", ["phi3", "gpt-neox"])
def test_frozen_kv_needs_projections_of_their_own(family: str, tmp_path: Path) -> None:
    merges = MergeStore(tiny_model(family), Mse(kv="frozen"), SEQUENCES, tmp_path, label="x")
    with pytest.raises(PdtrimError) as caught:
        merges.trained(merges.merge_of(PAIR))
    assert str(caught.value) == (
        f'tiny {family}: this family computes K and V together with Q, so they cannot stay frozen: say distiller.kv = "shadow"'
    )
