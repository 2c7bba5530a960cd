"""Runs, recipes and sweeps that version 0.1 wrote: they open, go on and say what is called otherwise now."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from pdtrim_core import apply, load_run, results_in
from tests.e2e.conftest import Cli

WRITTEN = Path(__file__).parents[1] / "data" / "written-by-0.1"
RENAMED = {
    "joint": (
        "prune.merge_above = 1.1 is prune.merges = false since 0.2",
        'evaluation.prefill_tail = "full" is evaluation.truncate_prefill = false since 0.2',
        'model.device = "auto" is model.placement = "auto" since 0.2',
        "searcher.caution = 2.0 is search.caution = 2.0 since 0.2",
        "splitter 'as-found' is 'keep-search-result' since 0.2",
    ),
    "merged": (
        "prune.merge_above = -1.0 is prune.merge_threshold = -1.0 since 0.2",
        'evaluation.prefill_tail = "free" is evaluation.truncate_prefill = true since 0.2',
        'model.device = "auto" is model.placement = "auto" since 0.2',
        'splitter.unit = "points" is splitter.unit = "score" since 0.2',
    ),
}


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy, in the folder that the tests run in: what is opened may be written to, and paths in it are relative."""
    shutil.copytree(WRITTEN, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_run_opens_with_its_merged_block_and_generates(written: Path) -> None:
    run = load_run(written / "merged")
    assert {row.name: round(row.calibration.score, 1) for row in run.outcome.rows} == _scores_in(written / "merged")
    assert [str(element) for element in run.modules] == ["0+1"]
    assert len(apply(run, run.dense).generate(list(b"Water"), 4)) == 4
    (result,) = results_in(run.path)
    assert (result.task, result.variant) == ("arc_easy", "staged")


def _scores_in(run: Path) -> dict[str, float]:
    rows = json.loads((run / "outcome.json").read_text())["rows"]
    return {row["name"]: round(row["calibration"]["points"], 1) for row in rows}


@pytest.mark.parametrize("run", ["joint", "merged"])
def test_every_command_that_reads_a_run_reads_it(written: Path, cli: Cli, run: str) -> None:
    for words in (("show", run), ("report", run), ("compare", run), ("export", run, "--to", "plan", "--out", "out")):
        done = cli(*words)
        assert (done.code, done.err.count("error")) == (0, 0), done
    assert (written / "out" / "plan.json").read_bytes() == (written / run / "plan.json").read_bytes()


@pytest.mark.parametrize("run", ["joint", "merged"])
def test_a_run_that_was_interrupted_goes_on_and_each_old_word_is_named(written: Path, cli: Cli, run: str) -> None:
    plan = (written / run / "plan.json").read_bytes()
    (written / run / "outcome.json").unlink()
    (written / run / "plan.json").unlink()
    done = cli("run", f"{run}/recipe.toml", "--out", run)
    assert done.code == 0, done.err
    exact = cli("run", f"{run}/recipe.toml", "--out", "exact", "--set", "search.mode=exact", "--set", "recovery=none")
    assert exact.code == 0, exact.err
    assert (written / "exact" / "plan.json").read_bytes() == plan
    assert [line for line in done.err.splitlines() if line.startswith("warning: ")] == [
        f"warning: {run}/recipe.toml: {said}" for said in RENAMED[run]
    ]
    # Another plan may come out: this version decides by likelihood and on fresh items where 0.1 took the best that it measured,
    # and it recovers what it has found.
    assert json.loads((written / run / "plan.json").read_text()).keys() - {"recovered"} == json.loads(plan).keys()
    assert "what depends on it is measured again: an earlier version of pdtrim-core measured them" in done.err
    assert json.loads((written / run / "outcome.json").read_text())["candidates"]["measured"] > 0


def test_an_old_key_beside_its_new_one_is_refused(written: Path, cli: Cli) -> None:
    done = cli("check", "joint/recipe.toml", "--set", "prune.merge_threshold=0.9")
    assert done.code == 0, done.err
    done = cli("check", "joint/recipe.toml", "--set", "prune.merges=true")
    assert (done.code, "prune.merge_above: this is prune.merge_threshold since 0.2, which" in done.out) == (2, True), done


def test_a_sweep_may_say_sides(written: Path, cli: Cli) -> None:
    (written / "sweep.toml").write_text(
        'sweep = 1\nrecipe = "joint/recipe.toml"\n[grid]\nseed = [0]\n[evaluate]\ntasks = ["piqa"]\nsides = ["dense"]\n'
        "[[runs]]\nname = 'one'\nsides = ['staged']\n"
    )
    done = cli("check", "sweep.toml")
    assert done.code == 0, done.err
    assert "warning: sweep.toml: evaluate.sides is evaluate.variants since 0.2" in done.err
    assert "warning: sweep.toml: runs.sides is runs.variants since 0.2" in done.err
