"""`pdtrim-core export`: a finished run, written for other programs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path) -> Path:
    assert cli("run", str(recipe), "--out", str(tmp_path / "run")).code == 0
    return tmp_path / "run"


def test_several_exporters_write_into_the_run_or_elsewhere(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("export", str(run), "--to", "checkpoints,plan", "--dtype", "bfloat16")
    assert done.code == 0, done.err
    assert [line.split("  ")[0] for line in done.out.splitlines()] == [
        str(run / name) for name in ("decode", "unified", "plan.json")
    ]
    assert json.loads((run / "decode" / "config.json").read_text())["dtype"] == "bfloat16"
    done = cli("export", str(run), "--to", "vllm", "--out", str(tmp_path / "pair"), "--set", "max_shard=0.0001")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "pair").iterdir()) == ["decode", "prefill", "serve"]
    assert (tmp_path / "pair" / "decode" / "model.safetensors.index.json").is_file()


def test_a_recipe_can_have_them_too(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text() + '\n[[exporter]]\nuse = "checkpoints"\ndtype = "float16"\n')
    done = cli("run", str(recipe), "--out", str(tmp_path / "run"))
    assert done.code == 0, done.err
    assert json.loads((tmp_path / "run" / "unified" / "config.json").read_text())["dtype"] == "float16"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--to", "chekpoints"], "did you mean 'checkpoints'?"),
        (["--to", ","], "--to: 1 problem\n  name an exporter: pdtrim-core plugins lists them"),
        (["--to", "plan", "--dtype", "float16"], "--set: 1 problem\n  dtype: plan has no such option"),
        (
            ["--to", "checkpoints,plan", "--set", "max_shrad=1"],
            "max_shrad: checkpoints, plan has no such option; did you mean 'max_shard'?",
        ),
        (["--to", "checkpoints", "--dtype", "int8"], "exporter.dtype: "),
        (["--to", "checkpoints", "--set", "max_shard"], "'max_shard': say KEY=VALUE"),
    ],
)
def test_bad_input_gets_one_line(cli: Cli, run: Path, given: list[str], said: str) -> None:
    done = cli("export", str(run), *given)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_a_folder_without_a_run_is_refused(cli: Cli, tmp_path: Path) -> None:
    done = cli("export", str(tmp_path), "--to", "checkpoints")
    assert done.code == 1
    assert "has no outcome.json: name the folder of a run" in done.err


def test_the_folder_of_another_run_is_left_alone(cli: Cli, run: Path, tmp_path: Path) -> None:
    (tmp_path / "other" / "merges").mkdir(parents=True)
    done = cli("export", str(run), "--to", "plan", "--out", str(tmp_path / "other"))
    assert done.code == 1
    assert f"{tmp_path / 'other' / 'merges'} exists, so {tmp_path / 'other'} is the folder of another run" in done.err


def test_a_model_that_changed_since_is_refused(cli: Cli, run: Path, tiny_checkpoint: Path) -> None:
    weights = tiny_checkpoint / "model.safetensors"
    before = weights.read_bytes()
    try:
        # The last byte of the weights is that of a float's sign and exponent.
        weights.write_bytes(before[:-1] + bytes([before[-1] ^ 128]))
        done = cli("export", str(run), "--to", "checkpoints")
    finally:
        weights.write_bytes(before)
    assert done.code == 1
    assert "has other weights now" in done.err
    assert not (run / "decode").exists()
