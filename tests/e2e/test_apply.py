"""`pdtrim-core apply`: a plan file that somebody shared, on its model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path) -> Path:
    settings = ("--set", "recovery=none", "--set", "searcher=greedy")
    assert cli("run", recipe, "--out", tmp_path / "run", *settings).code == 0
    return tmp_path / "run"


def test_a_plan_alone_gives_the_checkpoints_of_its_run(cli: Cli, run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert cli("export", run, "--to", "checkpoints").code == 0
    plan = tmp_path / "mail" / "plan.json"
    plan.parent.mkdir()
    shutil.copy(run / "plan.json", plan)
    done = cli("apply", plan, tiny_checkpoint, "--to", "checkpoints")
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.out.splitlines()] == ["exports/decode", "exports/unified"]
    ours, theirs = (load_file(folder / "decode" / "model.safetensors") for folder in (tmp_path / "exports", run))
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours)
    card = (tmp_path / "exports" / "decode" / "README.md").read_text()
    assert "Made from a plan alone" in card
    assert "| parameters of decode (weights) |" in card


def test_a_plan_for_another_model_is_refused(cli: Cli, run: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    data = json.loads((run / "plan.json").read_text())
    data["model"]["fingerprint"] = "0" * 64
    (tmp_path / "other.json").write_text(json.dumps(data))
    done = cli("apply", "other.json", tiny_checkpoint, "--to", "checkpoints")
    assert done.code == 1
    assert "has other weights" in done.err
    assert cli("apply", run, "package:no_such", "--to", "checkpoints").code == 1
    assert cli("apply", run, tiny_checkpoint, "--to", "chekpoints").code == 2


def test_what_lies_beside_a_plan_is_missed_by_name(cli: Cli, recipe: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    settings = ("--set", "recovery=fold", "--set", "searcher=greedy", "--set", 'recovery_data.sources=["calibration"]')
    few = ("--set", "recovery.tokens=500", "--set", "recovery.ridge=1.0")  # a strong pull, since there are few tokens
    assert cli("run", recipe, "--out", tmp_path / "run", *settings, *few).code == 0
    assert "recovered" in json.loads((tmp_path / "run" / "plan.json").read_text())
    (tmp_path / "mail").mkdir()
    shutil.copy(tmp_path / "run" / "plan.json", tmp_path / "mail")
    done = cli("apply", tmp_path / "mail" / "plan.json", tiny_checkpoint, "--to", "checkpoints")
    assert done.code == 1
    assert str(tmp_path / "mail" / "recovered") in done.err
    assert len(done.err.splitlines()) == 1
    assert cli("apply", tmp_path / "run" / "plan.json", tiny_checkpoint, "--to", "checkpoints").code == 0
    cards = list((tmp_path / "exports").rglob("README.md"))
    assert cards
    assert all("have other weights than in the source model; its run" in card.read_text() for card in cards)
