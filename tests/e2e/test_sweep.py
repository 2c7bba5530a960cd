"""Whole sweeps on a tiny checkpoint: one table, runs that share, stops and failures that cost only what they must."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
PROGRAM = Path(sys.executable).with_name("pdtrim-core")
SWEEP = """\
sweep = 1
about = "Budgets and searchers"
out = "s"
recipe = "recipe.toml"

[[runs]]
name = "random"
set.searcher = { use = "random", tries = 5 }

[[runs]]
name = "greedy"
set.searcher = "greedy"

[grid]
prune.blocks = [1, 2]
"""
NAMES = ["random,blocks=1", "random,blocks=2", "greedy,blocks=1", "greedy,blocks=2"]


@pytest.fixture
def sweep(recipe: Path) -> Path:
    path = recipe.with_name("sweep.toml")
    path.write_text(SWEEP)
    return path


def plans_in(folder: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in folder.glob("*/plan.json")}


def begun(err: str) -> list[str]:
    return [line.partition("] ")[2] for line in err.splitlines() if line.startswith("[")]


def test_a_sweep_runs_everything_and_prints_one_table(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    done = cli("sweep", sweep)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].strip() == "Budgets and searchers"
    assert lines[1].split()[:5] == ["run", "blocks", "searched", "dense", "unified"]
    assert [line.split()[:2] for line in lines[2:]] == [["random", "1"], ["random", "2"], ["greedy", "1"], ["greedy", "2"]]
    assert done.out.isascii()
    assert begun(done.err) == NAMES
    assert sorted(path.name for path in (tmp_path / "s").iterdir()) == sorted(NAMES)
    for name in NAMES:
        shown = cli("show", f"s/{name}")
        assert shown.code == 0, shown.err


def test_what_is_done_is_not_done_again(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    first = cli("sweep", sweep)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")}
    again = cli("sweep", sweep)
    assert (again.code, again.out, again.err) == (0, first.out, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "s").rglob("*")} == before
    more = sweep.read_text().replace("[1, 2]", "[1, 2, 3]")
    sweep.write_text(more)
    assert begun(cli("sweep", sweep).err) == ["random,blocks=3", "greedy,blocks=3"]
    assert begun(cli("sweep", sweep, "--fresh").err) == [f"{name},blocks={n}" for name in ("random", "greedy") for n in (1, 2, 3)]


def test_each_run_gives_the_plan_that_it_gives_alone_and_goes_on_by_itself(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    assert cli("sweep", sweep).code == 0
    for name in NAMES:
        assert cli("run", f"s/{name}/recipe.toml", "--out", f"alone/{name}").code == 0
    assert plans_in(tmp_path / "s") == plans_in(tmp_path / "alone")
    (tmp_path / "s" / NAMES[-1] / "outcome.json").unlink()
    journal = (tmp_path / "s" / NAMES[-1] / "journal.jsonl").read_bytes()
    again = cli("run", f"s/{NAMES[-1]}/recipe.toml", "--json")
    assert again.code == 0, again.err
    assert json.loads(again.out)["candidates"]["measured"] > 0
    assert (tmp_path / "s" / NAMES[-1] / "journal.jsonl").read_bytes() == journal


def test_a_sweep_that_is_killed_goes_on_where_it_stopped(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    whole = cli("sweep", sweep, "--out", "whole")
    assert whole.code == 0, whole.err
    # Far more tries than are measured before the signal: the second run is cut in its search.
    sweep.write_text(
        SWEEP.replace('name = "greedy"\nset.searcher = "greedy"', 'name = "long"\nset.searcher = { use = "random" }')
    )
    long = ["--set", "evaluation.batch_tokens=16"]
    with subprocess.Popen([PROGRAM, "sweep", str(sweep), *long], cwd=tmp_path, stderr=subprocess.DEVNULL) as process:
        journal = tmp_path / "s" / "long,blocks=2" / "journal.jsonl"
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline and not (journal.is_file() and journal.read_text().count("\n") > 3):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    kept = journal.read_bytes()
    outcomes = {path: path.stat().st_mtime_ns for path in (tmp_path / "s").glob("*/outcome.json")}
    assert len(outcomes) in {3, 4}  # the last run may have come to its end before the signal
    again = cli("sweep", sweep, *long)
    assert again.code == 0, again.err
    assert begun(again.err) == ["long,blocks=2"][: 4 - len(outcomes)]
    assert journal.read_bytes().startswith(kept[: kept.rindex(b"\n") + 1])
    assert {path: path.stat().st_mtime_ns for path in outcomes} == outcomes
    assert cli("sweep", sweep, *long, "--out", "uncut").code == 0
    assert plans_in(tmp_path / "s") == plans_in(tmp_path / "uncut")


def test_ctrl_c_says_how_to_go_on(sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(SWEEP.replace("tries = 5", "tries = 5000").replace("[1, 2]", "[3]"))
    process = subprocess.Popen([PROGRAM, "sweep", str(sweep)], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    journal = tmp_path / "s" / "random,blocks=3" / "journal.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and not (journal.is_file() and journal.read_text()):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.splitlines()[-1] == "interrupted; what was measured is kept: run the same command again to go on"


def test_a_run_that_fails_does_not_stop_the_others(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(SWEEP.replace("[1, 2]", "[6, 1]"))
    done = cli("sweep", sweep)
    assert done.code == 1
    assert [line.split()[:3] for line in done.out.splitlines()[2:] if "failed" in line] == [
        ["random", "6", "failed"],
        ["greedy", "6", "failed"],
    ]
    assert {path.parent.name for path in (tmp_path / "s").glob("*/outcome.json")} == {"random,blocks=1", "greedy,blocks=1"}
    model = json.loads(cli("run", "s/random,blocks=1/recipe.toml", "--json").out)["model"]
    why = f"cannot remove 6 of the 6 blocks of {model}: decode must keep at least one (prune.blocks can be 0 to 5)"
    assert done.err.splitlines()[-3:] == [
        "error: 2 of 4 runs failed; mend this and run the same command again",
        f"  random,blocks=6: {why}",
        f"  greedy,blocks=6: {why}",
    ]
    assert done.err.count(f"failed: {why}") == 2


def test_what_only_a_bug_can_cause_stops_no_other_run_and_shows_its_traceback_when_asked(
    cli: Cli, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pdtrim_core.pipeline import pipeline

    whole = pipeline.run

    def broken(recipe: Any, **options: Any) -> Any:
        if recipe.searcher.name == "greedy":
            raise ZeroDivisionError("by nothing")
        return whole(recipe, **options)

    monkeypatch.setattr(pipeline, "run", broken)
    done = cli("sweep", sweep, "--debug")
    assert done.code == 1
    assert done.err.splitlines()[-1] == "  greedy,blocks=2: ZeroDivisionError: by nothing"
    assert "Traceback" in done.err


def test_a_folder_that_holds_another_run_fails_that_run_alone(cli: Cli, sweep: Path) -> None:
    assert cli("sweep", sweep).code == 0
    sweep.write_text(SWEEP.replace("tries = 5", "tries = 6"))
    done = cli("sweep", sweep)
    assert done.code == 1
    assert done.err.splitlines()[-2:] == [
        f"  random,blocks={count}: s/random,blocks={count} holds a run of another recipe, which differs in searcher.tries: start "
        "anew with --fresh, or choose another folder with --out"
        for count in (1, 2)
    ]
    assert cli("sweep", sweep, "--fresh").code == 0


def test_all_problems_are_told_before_anything_runs(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    sweep.write_text(SWEEP.replace("tries", "tires").replace("[1, 2]", "[1, -2]"))
    done = cli("sweep", sweep)
    assert done.code == 2
    assert done.err.splitlines() == [
        f"error: {sweep}: 2 problems",
        "  searcher.tires: unknown key; did you mean 'tries'? (in random,blocks=1; random,blocks=-2)",
        "  prune.blocks: must be greater than or equal to 0 (got -2) (in random,blocks=-2; greedy,blocks=-2)",
    ]
    assert not (tmp_path / "s").exists()


def test_a_dry_run_lists_the_runs_and_writes_nothing(cli: Cli, sweep: Path, tmp_path: Path) -> None:
    done = cli("sweep", sweep, "--dry-run")
    assert (done.code, done.out.splitlines()) == (0, [f"s/{name}" for name in NAMES])
    data = json.loads(cli("sweep", sweep, "--dry-run", "--json").out)
    assert [run["run"] for run in data] == NAMES
    assert data[1]["recipe"]["prune"]["blocks"] == 2
    assert not (tmp_path / "s").exists()


def test_the_table_comes_as_json(cli: Cli, sweep: Path) -> None:
    data = json.loads(cli("sweep", sweep, "--json", "--set", "calibration.held_out=0").out)
    assert [row["run"] for row in data["rows"]] == NAMES
    assert data["settings"] == ["prune.blocks"]
    row = data["rows"][1]
    assert (row["name"], row["settings"]["prune.blocks"], row["state"]) == ("random", 2, "done")
    assert len(row["decode"]) == 2
    assert row["values"]["staged"]["held_out"] is None
    assert len(row["block_scores"]) == row["block_count"] == 6


def test_check_takes_sweeps_and_run_names_the_right_command(cli: Cli, sweep: Path, recipe: Path) -> None:
    assert cli("check", sweep, recipe).out.splitlines() == [f"{sweep}: ok, 4 runs", f"{recipe}: ok"]
    budgets = cli("check", sweep, "--budget").out.splitlines()
    assert [line.split(": ")[1] for line in budgets] == NAMES
    assert cli("run", sweep).err.splitlines()[1] == "  this is a sweep, a table of runs: carry it out with pdtrim-core sweep"
    missing = cli("sweep", recipe)
    assert missing.code == 2
    assert missing.err.splitlines()[1] == "  the key sweep = 1 is missing: a recipe is carried out by pdtrim-core run"


def test_what_varies_cannot_be_set(cli: Cli, sweep: Path) -> None:
    assert cli("sweep", sweep, "--set", "searcher.tries=2", "--dry-run").code == 2


@pytest.mark.parametrize("name", ["NO_COLOR", "FORCE_COLOR"])
def test_a_pipe_gets_the_whole_table_in_plain_lines(program: Cli, sweep: Path, name: str) -> None:
    sweep.write_text(SWEEP.replace("[1, 2]", "[1]"))
    done = program("sweep", sweep, **{name: "1", "COLUMNS": "40"} | {"PATH": os.environ["PATH"]})
    assert done.code == 0, done.err
    assert len(done.out.splitlines()) == 4
