"""Merging: trained blocks come nearer to the pair, are found again, and run in both stages."""

from __future__ import annotations

import copy
import hashlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Distiller, Merge, PdtrimError, Plan, PluginError, Removal, Student, TeacherBatches
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.weights import read_module, write_module
from pdtrim_core.pipeline.merge_store import KeptMerges, MergeStore, TrainedMerge, training_items
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_plugins.distillers import CosineLoss, LogitKl, Mse, MseCosine
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

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


@pytest.mark.numeric
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


@pytest.mark.numeric
def test_merging_a_block_that_is_the_identity_costs_nothing(tmp_path: Path) -> None:
    merges = store(tmp_path, Mse(epochs=1), silent={2})
    _, record = merges.trained(Merge(keep=3, drop=2))
    assert record.untrained == pytest.approx(0.0, abs=1e-10)


@pytest.mark.numeric
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


@pytest.mark.numeric
def test_a_loss_that_is_not_a_number_is_named_and_nothing_is_stored(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        store(tmp_path, Diverges()).trained(PAIR)
    assert str(caught.value) == "distiller 'x': the loss of the merge 2+3 became nan in epoch 2: lower its lr"
    assert not list(tmp_path.iterdir())


@pytest.mark.numeric
def test_training_leaves_the_dense_model_as_it_was(tmp_path: Path) -> None:
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.model.state_dict().items()}
    MergeStore(model, LogitKl(lr=1e-3, epochs=1), SEQUENCES, KeptMerges(tmp_path), label="x").trained(PAIR)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.model.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.model.parameters())


@pytest.mark.numeric
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


HALVES = [torch.bfloat16, torch.float16]


def trained_in(dtype: torch.dtype, folder: Path, distiller: Distiller, family: str = "llama") -> TrainedMerge:
    merges = MergeStore(tiny_model(family, dtype=dtype), distiller, SEQUENCES, KeptMerges(folder), label="distiller 'x'")
    return merges.trained(merges.merge_of(PAIR))[1]


def fall(record: TrainedMerge) -> float:
    return 1 - record.losses[-1] / record.losses[0]


@pytest.mark.numeric
@pytest.mark.parametrize(("family", "kv"), [("llama", "frozen"), ("opt", "shadow"), ("gemma3", "frozen"), ("gpt-neox", "shadow")])
@pytest.mark.parametrize("distiller", [Mse, LogitKl])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_loss_falls_in_each_format_as_in_float32(
    dtype: torch.dtype, distiller: type[Distiller], family: str, kv: str, tmp_path: Path
) -> None:
    """With the default learning rate, whose steps a weight in bfloat16 cannot take."""
    made = distiller.model_validate({"epochs": 8, "kv": kv})
    wanted, found = (fall(trained_in(of, tmp_path, made, family)) for of in (torch.float32, dtype))
    # The blocks behind a merge round in the format of the model, which a loss of logits sees.
    assert found == pytest.approx(wanted, rel=0.05 if distiller is Mse else 0.6)
    assert wanted > 0


class Watched(Mse):
    """Notes the formats of what is trained, and the share of its numbers that changed."""

    name = "watched"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        before = [parameter.detach().clone() for parameter in student.parameters()]
        yield from super().distil(student, batches)
        changed = [bool(one) for old, new in zip(before, student.parameters(), strict=True) for one in (old != new).flatten()]
        WATCHED.append(({parameter.dtype for parameter in before}, sum(changed) / len(changed)))


WATCHED: list[tuple[set[torch.dtype], float]] = []


@pytest.mark.parametrize("family", ["llama", "opt", "mixtral"])
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_is_trained_is_in_float32_and_all_of_it_moves(dtype: torch.dtype, family: str, tmp_path: Path) -> None:
    trained_in(dtype, tmp_path, Watched(epochs=2), family)
    formats, share = WATCHED.pop()
    assert formats == {torch.float32}
    assert share > 0.9


@pytest.mark.numeric
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
@pytest.mark.parametrize("family", ["llama", "opt", "gemma3"])
@pytest.mark.parametrize("dtype", HALVES)
def test_a_trained_merge_is_in_the_format_of_the_model_and_judged_so(
    dtype: torch.dtype, family: str, kv: str, tmp_path: Path
) -> None:
    model = tiny_model(family, dtype=dtype)
    merges = MergeStore(model, Mse.model_validate({"lr": 1e-3, "kv": kv}), SEQUENCES, KeptMerges(tmp_path), label="x")
    merge = merges.merge_of(PAIR)
    module, record = merges.trained(merge)
    start = dict(model.blocks[merge.keep].named_parameters())
    assert all(weight.dtype == dtype and weight.grad is None for weight in module.parameters())
    frozen = tuple(model.layout.kv) if kv == "frozen" else ()
    same = {name for name, weight in module.named_parameters() if torch.equal(weight, start[name])}
    assert {name for name in start if name.startswith(frozen)} <= same if frozen else not same - {"self_attn.k_proj.bias"}
    assert record.moved
    assert record.trained < 0.9 * record.untrained
    again, found = merges.trained(merge)
    assert found == record
    assert all(torch.equal(one, other) for one, other in zip(module.parameters(), again.parameters(), strict=True))
    # What the stages make of the module that is stored, without a student.
    batches = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), merge)
    with torch.no_grad():
        gaps = [model.run(merge.keep, b.before_BTD.to(dtype), b.calls, again).float() - b.after_BTD for b in batches]
    assert record.trained == pytest.approx(float(torch.cat(gaps).square().mean()), rel=1e-4)


class OwnDescent(Distiller):
    """Another author's distiller, which knows nothing of number formats and has an optimiser of its own."""

    name = "own-descent"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        optimizer = torch.optim.SGD(student.parameters(), lr=1e-4, momentum=0.9)
        for _ in range(5):
            total = 0.0
            for batch in batches:
                optimizer.zero_grad()
                loss = torch.nn.functional.mse_loss(student(batch), batch.after_BTD)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                total += float(loss.detach())
            yield total / len(batches)


@pytest.mark.numeric
@pytest.mark.parametrize("dtype", HALVES)
def test_a_distiller_that_knows_nothing_of_formats_trains_as_in_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    wanted, found = (trained_in(of, tmp_path, OwnDescent()) for of in (torch.float32, dtype))
    assert fall(found) == pytest.approx(fall(wanted), rel=0.05)
    assert fall(wanted) > 0


class Idle(Distiller):
    """A distiller that measures and trains nothing."""

    name = "idle"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        for _ in range(2):
            yield 1.0


class MovesTooLittle(Distiller):
    """A distiller whose steps are less than bfloat16 can tell apart."""

    name = "moves-too-little"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        with torch.no_grad():
            for parameter in student.parameters():
                parameter.mul_(1 + 1e-5)
        yield 1.0


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_a_merge_that_trained_nothing_is_not_worth_it(kv: str, dtype: torch.dtype, tmp_path: Path) -> None:
    record = trained_in(dtype, tmp_path, Idle.model_validate({"kv": kv}))
    assert record.trained == record.untrained == (record.drop_second if kv == "frozen" else record.drop_first)
    assert (record.moved, record.worthwhile) == (False, False)


@pytest.mark.parametrize(("dtype", "moved"), [(torch.float32, True), (torch.bfloat16, False)])
def test_what_the_format_of_the_model_rounds_away_did_not_move(dtype: torch.dtype, moved: bool, tmp_path: Path) -> None:
    assert trained_in(dtype, tmp_path, MovesTooLittle()).moved == moved


@pytest.mark.numeric
def test_a_merge_as_good_as_a_drop_is_not_worth_it() -> None:
    assert not TrainedMerge(PAIR, untrained=2.0, trained=1.0, drop_first=1.0, drop_second=2.0, losses=(1.0,)).worthwhile
    assert TrainedMerge(PAIR, untrained=2.0, trained=0.9, drop_first=1.0, drop_second=2.0, losses=(1.0,)).worthwhile


class Thaws(Mse):
    """A distiller that trains what is frozen."""

    name = "thaws"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        student.module.requires_grad_(requires_grad=True)
        yield from super().distil(student, batches)


def test_a_distiller_that_changes_what_is_frozen_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        trained_in(torch.float32, tmp_path, Thaws.model_validate({"lr": 1e-3, "kv": "frozen"}))
    assert str(caught.value) == (
        "distiller 'x' changed the weight self_attn.k_proj.weight of the merge 2+3, which is frozen: it may change "
        "student.parameters() only"
    )
    assert not list(tmp_path.iterdir())


class Silent(Distiller):
    """A distiller that yields no loss."""

    name = "silent"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        yield from ()


@pytest.mark.numeric
def test_a_distiller_without_a_loss_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"^distiller 'x' yielded no loss for the merge 2\+3: it must yield one"):
        store(tmp_path, Silent()).trained(PAIR)


class Grows(Distiller):
    """A distiller whose weights are more than float16 can hold, and no more than float32 can."""

    name = "grows"

    def distil(self, student: Student, batches: TeacherBatches) -> Iterator[float]:
        with torch.no_grad():
            student.parameters()[0].add_(1e5)
        yield 1.0


def test_weights_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PluginError) as caught:
        trained_in(torch.float16, tmp_path, Grows())
    assert str(caught.value) == (
        "distiller 'x': the weight self_attn.q_proj.weight of the merge 2+3 is beyond what float16 can hold after training: "
        'lower its lr, or say dtype = "bfloat16" or "float32" in [model]'
    )
    assert not list(tmp_path.iterdir())


def test_hidden_states_that_the_format_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = tiny_model("llama", dtype=torch.float16)
    with torch.no_grad():
        model.blocks[2].get_submodule("mlp.down_proj").get_parameter("weight").mul_(1e5)
    with pytest.raises(PdtrimError) as caught:
        MergeStore(model, Mse(), SEQUENCES, KeptMerges(tmp_path), label="x").trained(PAIR)
    assert str(caught.value) == (
        "tiny llama: hidden states of the merge 2+3 are beyond what float16 can hold: "
        'say dtype = "bfloat16" or "float32" in [model]'
    )


def test_merges_of_bfloat16_models_have_another_digest_than_they_had(tmp_path: Path) -> None:
    """Older versions trained those in bfloat16, which trained nothing: none of them may be found again."""
    digests = {
        dtype: MergeStore(tiny_llama(dtype=dtype), Mse(), SEQUENCES, KeptMerges(tmp_path), label="x").digest for dtype in HALVES
    }
    of_tokens = hashlib.sha256(repr([tuple(s) for s in SEQUENCES]).encode()).hexdigest()
    assert of_tokens not in digests.values()
    assert MergeStore(tiny_llama(), Mse(), SEQUENCES, KeptMerges(tmp_path), label="x").digest == of_tokens


def test_a_float32_merge_of_an_older_version_is_found_again(tmp_path: Path) -> None:
    _, record = store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)
    (path,) = tmp_path.iterdir()
    tensors, figures = read_module(path)
    module = copy.deepcopy(tiny_llama().blocks[PAIR.keep])
    module.load_state_dict(tensors)
    write_module(path, module, {name: value for name, value in figures.items() if name != "moved"})
    assert store(tmp_path, Mse(lr=1e-3, epochs=1)).trained(PAIR)[1] == record
