"""A training that is killed, interrupted or refused goes on from what it wrote last, to the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import PdtrimError
from pdtrim_core.execution.recovered_weights import recovered_weights
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.recoveries import Distill
from tests.unit.recovery_pairs import recovery_context, some_texts

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

ROOT = Path(__file__).parents[4]
OPTIONS: dict[str, Any] = {"steps": 12, "batch": 4, "lr": 5e-3, "check_every": 4, "save_every": 3}
SCRIPT = """
import sys
from pathlib import Path
from tests.unit.plugins.recoveries.test_training import killed_while_writing, recovered
if sys.argv[2] != "0":
    killed_while_writing(int(sys.argv[2]))
recovered(Path(sys.argv[1]), lost=lambda loss: print(loss, flush=True))
"""


def recovered(folder: Path, *, texts: int = 24, model_seed: int = 0, **changes: Any) -> dict[str, Tensor]:
    """The weights of decode behind a training of which the work lies in a folder."""
    given = {name: changes.pop(name) for name in ("note", "lost") if name in changes}
    context = recovery_context(tiny_llama(seed=model_seed), folder=folder, texts=some_texts(texts), **given)
    Distill(**{**OPTIONS, **changes}).recover(context)
    return recovered_weights(context.plan, context.model, context.pair.modules, "decode")


def killed_while_writing(write: int) -> None:
    """Kill this process when a file is written whole for the so manieth time, before it has its name."""
    fsync, count = os.fsync, 0

    def counted(fd: Any) -> None:
        nonlocal count
        # Each is settled twice: the file, and its name in the folder.
        count += 1
        if count == 2 * write - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(fd)

    os.fsync = counted


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    assert found.keys() == expected.keys()
    return all(torch.allclose(found[name], expected[name], rtol=0, atol=1e-6) for name in found)


class Interrupted:
    """Takes losses, and has the user press Ctrl-C behind one of them."""

    def __init__(self, behind: int) -> None:
        self.losses: list[float] = []
        self._behind = behind

    def __call__(self, loss: float) -> None:
        self.losses.append(loss)
        if len(self.losses) == self._behind:
            raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], list[float]]:
    """What an undisturbed training comes to, and its losses."""
    losses: list[float] = []
    return recovered(tmp_path_factory.mktemp("whole"), lost=losses.append), losses


@pytest.mark.parametrize(("writing", "behind", "reached"), [(0, 8, (6,)), (3, 12, (6,))])
def test_a_killed_training_goes_on_to_the_same_weights(
    writing: int, behind: int, reached: tuple[int, ...], tmp_path: Path, whole: tuple[dict[str, Tensor], list[float]]
) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), str(writing)]
    paths = os.pathsep.join([str(ROOT), *sys.path])
    with subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for number, _ in enumerate(process.stdout, start=1):
            if number == behind:
                process.kill()
        assert process.wait() == -signal.SIGKILL
    notes: list[str] = []
    losses: list[float] = []
    found = recovered(tmp_path, note=notes.append, lost=losses.append)
    (note,) = notes
    # The process may have come a little further until the signal reached it.
    begun = int(note.split("step ")[1].split()[0])
    assert begun >= reached[0]
    assert begun % OPTIONS["save_every"] == 0
    assert losses == pytest.approx(whole[1], rel=1e-5)
    assert same(found, whole[0])


@pytest.mark.numeric
@pytest.mark.parametrize("behind", [1, 3, 4, 7, 12])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_an_interrupted_training_keeps_its_work(train: str, behind: int, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    expected = recovered(tmp_path / "whole", train=train)
    with pytest.raises(KeyboardInterrupt):
        recovered(tmp_path / "work", train=train, lost=Interrupted(behind))
    notes: list[str] = []
    assert same(recovered(tmp_path / "work", train=train, note=notes.append), expected)
    saved = (behind - 1) // 3 * 3
    assert notes == ([f"distill: goes on behind step {saved} of 12"] if saved else [])


@pytest.mark.numeric
def test_a_model_in_half_precision_goes_on_from_its_masters(tmp_path: Path) -> None:
    def run(folder: str, lost: Callable[[float], None]) -> dict[str, Tensor]:
        context = recovery_context(tiny_llama(dtype=torch.bfloat16), folder=tmp_path / folder, lost=lost)
        Distill(**OPTIONS).recover(context)
        return recovered_weights(context.plan, context.model, context.pair.modules, "decode")

    expected = run("whole", lambda loss: None)
    with pytest.raises(KeyboardInterrupt):
        run("work", Interrupted(8))
    found = run("work", lambda loss: None)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_training_that_has_ended_is_not_made_again(tmp_path: Path) -> None:
    expected = recovered(tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdtrim_plugins.recoveries.training.Training._step", None)
        assert same(recovered(tmp_path), expected)
    assert [file.name for file in tmp_path.iterdir()] == ["training.safetensors"]


@pytest.mark.parametrize("damage", ["a bit", "cut", "empty", "no file of tensors"])
def test_damaged_work_is_noted_and_the_training_starts_again(
    damage: str, tmp_path: Path, whole: tuple[dict[str, Tensor], list[float]]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        recovered(tmp_path, lost=Interrupted(8))
    file = tmp_path / "training.safetensors"
    data = file.read_bytes()
    file.write_bytes(
        {
            "a bit": data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
            "cut": data[: len(data) // 2],
            "empty": b"",
            "no file of tensors": b"hello" * 100,
        }[damage]
    )
    notes: list[str] = []
    losses: list[float] = []
    assert same(recovered(tmp_path, note=notes.append, lost=losses.append), whole[0])
    assert notes[0].startswith(f"distill: the training that was begun in {file} is damaged (")
    assert notes[0].endswith("): it starts again")
    assert len(losses) == 12


@pytest.mark.parametrize(
    "change",
    [
        {"lr": 4e-3},
        {"steps": 13},
        {"temperature": 2.0},
        {"contract": "pair"},
        {"texts": 23},
        {"model_seed": 1},
        {"check_every": 5},
    ],
)
def test_work_of_another_training_is_not_taken(change: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        recovered(tmp_path, lost=Interrupted(8))
    notes: list[str] = []
    recovered(tmp_path, note=notes.append, **change)
    assert notes[0] == "distill: options, texts or weights are not those of the training that was begun here: it starts again"


def test_work_on_weights_that_another_recovery_made_otherwise_is_not_taken(tmp_path: Path) -> None:
    model, notes = tiny_llama(), list[str]()
    Distill(**OPTIONS).recover(recovery_context(model, folder=tmp_path))
    context = recovery_context(model, folder=tmp_path, note=notes.append)
    layer = context.layers("prefill")[1]
    weight = context.module("prefill", layer).get_parameter("mlp.down_proj.weight")
    context.change("prefill", layer, {"mlp.down_proj.weight": 1.01 * weight.detach()})
    Distill(**OPTIONS).recover(context)
    assert notes[0].startswith("distill: options, texts or weights are not those")


def test_how_often_work_is_written_may_change(tmp_path: Path, whole: tuple[dict[str, Tensor], list[float]]) -> None:
    with pytest.raises(KeyboardInterrupt):
        recovered(tmp_path, lost=Interrupted(8))
    notes: list[str] = []
    assert same(recovered(tmp_path, save_every=5, note=notes.append), whole[0])
    assert notes == ["distill: goes on behind step 6 of 12"]


def test_a_full_disk_loses_the_last_interval_alone(tmp_path: Path, whole: tuple[dict[str, Tensor], list[float]]) -> None:
    losses: list[float] = []

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    def lost(loss: float) -> None:
        losses.append(loss)
        if len(losses) == 7:
            patch.setattr(os, "fsync", full)

    file = tmp_path / "training.safetensors"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(PdtrimError) as caught:
        recovered(tmp_path, lost=lost)
    assert str(caught.value).startswith(f"cannot write {file}: No space left on device; what was measured before is kept")
    assert len(losses) == 9
    notes: list[str] = []
    assert same(recovered(tmp_path, note=notes.append), whole[0])
    assert notes == ["distill: goes on behind step 6 of 12"]
