"""`export --push-to-hub`: what was written lands in a repository, with its card in front."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.hub import local_hub

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path) -> Path:
    settings = ("--set", "recovery=none", "--set", "searcher=greedy", "--set", "evaluation.fidelity=true")
    assert cli("run", recipe, "--out", tmp_path / "run", *settings, "--set", "evaluation.answer_tokens=4").code == 0
    return tmp_path / "run"


def exported(run: Path, *words: str, address: str, token: str) -> subprocess.CompletedProcess[str]:
    """Export in a process of its own: the hub's address is read once, when its package is imported."""
    given = {"HF_ENDPOINT": address, "HF_TOKEN": token, "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "pdtrim_core", "export", str(run), "--to", "checkpoints", *words]
    return subprocess.run(command, env={**os.environ, **given}, capture_output=True, text=True, check=False, cwd=run.parent)


def test_what_is_written_is_pushed_with_its_card_and_picture(run: Path) -> None:
    with local_hub("right") as hub:
        done = exported(run, "--push-to-hub", "some-org/pair", address=hub.address, token="right")
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines()[-1] == f"{hub.address}/some-org/pair"
        assert hub.private == {"some-org/pair": True}
        files = hub.files["some-org/pair"]
    for name in ("decode/model.safetensors", "unified/config.json", "decode/README.md"):
        assert files[name] == (run / name).read_bytes()
    assert files["README.md"] == files["decode/README.md"]
    card = files["README.md"].decode()
    assert "## How near it is to the dense model" in card
    assert "| staged | " in card
    assert "![KL divergence from the dense model](fidelity.png)" in card
    assert files["fidelity.png"].startswith(b"\x89PNG")


def test_a_hub_that_refuses_is_told_in_one_line(run: Path) -> None:
    with local_hub("right") as hub:
        done = exported(run, "--push-to-hub", "some-org/pair", address=hub.address, token="wrong")
    assert done.returncode == 1
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error")]
    assert line.startswith(f"error: cannot push to some-org/pair at {hub.address}: ")
    assert "HF_TOKEN" in line
    assert (run / "decode" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["pair", "a/b/c", "some org/pair", "-a/b"])
def test_a_name_that_none_can_have_is_told_before_anything_is_written(cli: Cli, tmp_path: Path, name: str) -> None:
    done = cli("export", tmp_path / "none", "--to", "checkpoints", f"--push-to-hub={name}")
    assert (done.code, done.out) == (2, "")
    assert f"'{name}' is no repository: say ORG/NAME" in done.err
