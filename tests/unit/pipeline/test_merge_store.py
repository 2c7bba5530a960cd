"""Merging: trained blocks come nearer to the pair, are found again, and run in both stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Distiller, Merge, PdtrimError, Plan, PluginError, Removal, Student, TeacherBatches
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.merge_store import KeptMerges, MergeStore
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_plugins.distillers import CosineLoss, LogitKl, Mse, MseCosine
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

pytestmark = pytest.mark.numeric

SEQUENCES = [[(7 * i + 3 * j) % 256 for j in range(64)] for i in range(8)]
PAIR = Merge(keep=3, drop=2)


def store(
    folder: Path,
    distiller: Distiller,
    *,
    note: Callable[[str], None] = print,
    code: str = "",
    fresh: set[str] | None = None,
    **model: Any,
) -> MergeStore:
    kept = KeptMerges(folder, fresh, note)
    return MergeStore(tiny_llama(**model), distiller, SEQUENCES, kept, label="distiller 'x'", code=code)


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
        MergeStore(tiny_llama(), Mse(lr=1e-3, epochs=1), SEQUENCES[1:], KeptMerges(tmp_path), label="x").trained(PAIR)
    else:
        store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(Merge(3, 4))
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_merge_is_named_and_trained_again(tmp_path: Path) -> None:
    _, record = store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    for damaged in (b"not safetensors", whole[:-1], b"", *(flipped(whole, place) for place in (40, 200, len(whole) - 100))):
        path.write_bytes(damaged)
        said: list[str] = []
        again = store(tmp_path, Mse(lr=1e-3, epochs=1), note=said.append)
        assert again.trained(PAIR)[1].trained == record.trained
        (note,) = said
        assert note.startswith(f"the stored merge {path} is damaged (")
        assert note.endswith(f"): merge {PAIR} is trained again")
        assert path.read_bytes() == whole


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def test_a_merge_is_trained_again_when_the_code_that_trains_it_is_other_code(tmp_path: Path) -> None:
    for number, code in enumerate(("own.py 1234", "own.py 5678"), start=1):
        for _ in range(2):
            store(tmp_path, Mse(lr=1e-3, epochs=1), code=code).trained(PAIR)
        assert len(list(tmp_path.iterdir())) == number


def test_what_is_to_be_made_anew_is_made_once_by_those_that_share_what_they_made(tmp_path: Path) -> None:
    trained = []

    class Counts(Mse):
        def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
            trained.append(1)
            yield from super().distil(student, batches)

    distiller = Counts(lr=1e-3, epochs=1)
    fresh: set[str] = set()
    for known, count in ((None, 1), (None, 1), (fresh, 2), (fresh, 2), (set(), 3), (None, 3)):
        store(tmp_path, distiller, fresh=known).trained(PAIR)
        assert len(trained) == count


def test_two_that_train_one_merge_at_once_train_it_once(tmp_path: Path) -> None:
    said: list[str] = []
    records: list[Any] = []

    stores = [store(tmp_path, Mse(lr=1e-3, epochs=20), note=said.append) for _ in range(3)]
    threads = [threading.Thread(target=lambda one=one: records.append(one.trained(PAIR)[1])) for one in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert records[0] == records[1] == records[2]
    assert set(said) <= {f"merge {PAIR}: another process is training it, its result is waited for"}
    assert len(list(tmp_path.iterdir())) == 1


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
    MergeStore(model, LogitKl(lr=1e-3, epochs=1), SEQUENCES, KeptMerges(tmp_path), label="x").trained(PAIR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt", "gemma3"])
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_a_trained_merge_in_decode_alone_agrees_with_two_phases(family: str, kv: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    merges = MergeStore(
        model, Mse.model_validate({"lr": 1e-2, "epochs": 3, "kv": kv}), SEQUENCES, KeptMerges(tmp_path), label="x"
    )
    merge = merges.merge_of(PAIR)
    module, _ = merges.trained(merge)
    staged = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), Plan(decode=Removal([merge])), {merge: module})
    items = some_items()[:3]
    for item, sums, expected in zip(items, staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
        assert sums == pytest.approx(expected, abs=1e-4 * max(map(len, item.choices)))


@pytest.mark.parametrize("family", ["phi3", "gpt-neox"])
def test_frozen_kv_needs_projections_of_their_own(family: str, tmp_path: Path) -> None:
    merges = MergeStore(tiny_model(family), Mse(kv="frozen"), SEQUENCES, KeptMerges(tmp_path), label="x")
    with pytest.raises(PdtrimError) as caught:
        merges.trained(merges.merge_of(PAIR))
    assert str(caught.value) == (
        f'tiny {family}: this family computes K and V together with Q, so they cannot stay frozen: say distiller.kv = "shadow"'
    )
