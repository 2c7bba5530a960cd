"""A tiny checkpoint on disk, and the command line run from the outside."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pdtrim_core.cli import main
from pdtrim_core.testing.models import save_tiny_model

PROGRAM = Path(sys.executable).with_name("pdtrim-core")
RECIPE = """\
recovery = "none"

[model]
path = "{model}"

[calibration]
samples = 8
held_out = 4

[prune]
blocks = 2

[evaluation]
fidelity = false

[searcher]
t_min = 5.0
"""


@dataclass
class Result:
    code: int
    out: str
    err: str


Cli = Callable[..., Result]


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("tiny") / "tiny-llama")


@pytest.fixture
def recipe(tmp_path: Path, tiny_checkpoint: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(model=tiny_checkpoint))
    return path


@pytest.fixture
def cli(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the command line in an empty folder, in this process: starting torch anew takes seconds."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["pdtrim-core", *map(str, words)])
        capsys.readouterr()
        try:
            main()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def program(tmp_path: Path) -> Cli:
    """Run pdtrim-core in a process of its own, in an empty folder."""

    def run(*words: object, **environment: str) -> Result:
        done = subprocess.run(
            [PROGRAM, *map(str, words)],
            cwd=tmp_path,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return run
