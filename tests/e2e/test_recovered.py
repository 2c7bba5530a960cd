"""A recovered run on the command line: shown, exported, served, timed, compared, listed and deleted."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.results.run_folder import load_outcome

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e

MORE = """
[[recovery]]
use = "fold"
tokens = 600

[recovery_data]
prompt_tokens = 8
answer_tokens = 8

[[exporter]]
use = "plan"

[[exporter]]
use = "vllm"
"""


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recipe.write_text(recipe.read_text().replace('recovery = "none"\n', "") + MORE)
    done = cli("run", recipe, "--out", "r")
    assert done.code == 0, done.err
    return Path("r")


def test_plans_that_lose_the_same_are_told_apart_by_their_recovered_weights(cli: Cli, run: Path) -> None:
    shown = load_outcome(run).plan.recovered[:12]
    assert shown
    assert f", first token by decode, recovered weights {shown}\n" in cli("show", run / "plan.json").out
    assert cli("show", run, run).out.count(f", recovered weights {shown})\n") == 2
    assert json.loads(cli("show", run, "--json").out)["recovered"].startswith(shown)


def test_a_recovered_pair_is_exported_elsewhere_and_served_from_there(cli: Cli, run: Path, tmp_path: Path) -> None:
    done = cli("export", run, "--to", "vllm,plan", "--out", tmp_path / "pair")
    assert done.code == 0, done.err
    assert sorted(path.name for path in (tmp_path / "pair").iterdir()) == ["decode", "plan.json", "prefill", "serve"]
    for stage in ("prefill", "decode"):
        files = [folder / stage / "model.safetensors" for folder in (run, tmp_path / "pair")]
        assert files[0].read_bytes() == files[1].read_bytes()
    done = cli("serve", tmp_path / "pair", "--dry-run", "--cpu")
    assert done.code == 0, done.err
    assert load_outcome(run).plan.digest[:12] in done.out
    (tmp_path / "other" / "recovered").mkdir(parents=True)
    done = cli("export", run, "--to", "vllm", "--out", tmp_path / "other")
    assert (done.code, done.err.startswith(f"error: {tmp_path / 'other' / 'recovered'} exists, so ")) == (1, True)


@pytest.mark.parametrize("words", [("export", "r", "--to", "vllm,checkpoints"), ("bench", "r"), ("eval", "r", "--fidelity")])
def test_a_run_whose_recovered_weights_are_gone_is_refused_in_one_line(
    cli: Cli, run: Path, words: tuple[str, ...], tmp_path: Path
) -> None:
    folder = (run / "recovered").resolve()
    shutil.rmtree(folder)
    done = cli(*words)
    assert (done.code, done.out) == (1, "")
    missing = f"the plan has recovered weights, and they are not in {folder}: name the folder of its run, or run the recipe again"
    assert done.err.splitlines()[-1] == f"error: {missing}"
    if words[0] == "export":
        done = cli(*words, "--out", tmp_path / "pair")
        assert (done.code, f"they are not in {folder}: " in done.err) == (1, True)
        assert list((tmp_path / "pair").iterdir()) == []


def test_a_recovered_run_is_timed_evaluated_and_compared(cli: Cli, run: Path) -> None:
    small = ("--forward", 16, "--prompt-lengths", 8, "--batches", 1, "--contexts", 8, "--repeats", 1, "--threads", 1)
    done = cli("bench", run, *small, "--dtype", "bfloat16")
    assert done.code == 0, done.err
    done = cli("eval", run, "--fidelity", "--variants", "staged,unrecovered,prefill")
    assert done.code == 0, done.err
    assert done.out.splitlines()[0].split() == ["task", "metric", "items", "staged", "unrecovered", "prefill"]
    assert done.out.endswith("\nstaged and unrecovered: the first token is decode's\n")
    done = cli("compare", run, "--variants", "staged,unrecovered")
    assert done.code == 0, done.err
    assert "r (unrecovered)" in done.out


def test_what_recovery_keeps_goes_with_the_run(cli: Cli, run: Path) -> None:
    (run / "recovery-work").mkdir(exist_ok=True)
    (listed,) = json.loads(cli("runs", ".", "--json").out)
    assert listed["besides"] == ["decode", "prefill", "serve"]
    assert "texts" in [part["name"] for part in json.loads(cli("cache", "--json").out)["parts"]]
    assert cli("cache", "texts", "--clean", "--yes").code == 0
    assert "texts" not in [part["name"] for part in json.loads(cli("cache", "--json").out)["parts"]]
    assert cli("runs", ".", "--clean", "--yes").code == 0
    assert not run.exists()
