"""`pdtrim-core report`: the page again, several runs, runs that did not finish, and what is no run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core import Plan
from pdtrim_core.results.run_folder import load_outcome, measured_in
from tests.browser import runs

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def test_a_run_writes_its_page_and_report_makes_the_same_again(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", 'report=["table", "html"]', "--out", "r")
    assert done.code == 0, done.err
    assert done.out.endswith("\nreport: r/report.html\n")
    page = Path("r/report.html").read_bytes()
    Path("r/report.html").unlink()
    assert cli("report", "r").out == "report: r/report.html\n"
    assert Path("r/report.html").read_bytes() == page
    assert b"path taken" in page
    assert b"norm in front of it" in page


def test_a_run_keeps_the_steps_of_its_search_and_the_norms(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", "searcher.alpha=0.5", "--out", "r")
    assert done.code == 0, done.err
    outcome = load_outcome(Path("r"))
    first, *others = outcome.search
    assert (first.floor, first.temperature, first.taken) == (None, None, True)
    assert [step.temperature for step in others] == [15.0, 7.5]
    assert all(step.prefill == step.decode for step in outcome.search)
    best = max(outcome.search, key=lambda step: step.score or 0.0)
    assert best.decode == ", ".join(map(str, outcome.plan.plan.decode))
    assert len(outcome.norms) == outcome.block_count + 1
    again = cli("run", recipe, "--set", "searcher.alpha=0.5", "--out", "r")
    assert again.code == 0
    assert load_outcome(Path("r")).search == outcome.search


def test_show_names_the_page_and_does_not_make_it_again(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--set", 'report=["html", "table"]', "--out", "r")
    Path("r/report.html").write_text("seen")
    shown = cli("show", "r").out
    assert shown.endswith("report: r/report.html\n")
    assert sorted(shown.splitlines()) == sorted(done.out.splitlines())
    assert Path("r/report.html").read_text() == "seen"
    Path("r/report.html").unlink()
    cli("show", "r")
    assert Path("r/report.html").stat().st_size > 10_000


def test_several_runs_stand_on_one_page(cli: Cli, tmp_path: Path) -> None:
    runs.write_run(tmp_path / "a", runs.joint())
    runs.write_unfinished(tmp_path / "b")
    assert cli("report", "a", "b").out == "report: comparison.html\n"
    assert "2 runs side by side: a and b." in Path("comparison.html").read_text()
    assert cli("report", "a", "b", "--out", "both.html").out == "report: both.html\n"
    assert not Path("a/report.html").exists()


def test_a_run_that_stopped_has_a_page_and_keeps_its_journal_as_it_is(cli: Cli, tmp_path: Path) -> None:
    journal = runs.write_unfinished(tmp_path / "r") / "journal.jsonl"
    before = journal.read_bytes()
    assert cli("report", "r").code == 0
    assert "has not finished" in Path("r/report.html").read_text()
    # Its last line is torn: a run may be writing it this very moment.
    assert journal.read_bytes() == before
    assert Plan() in measured_in(tmp_path / "r")["calibration"]


def other_version(folder: Path) -> None:
    data = json.loads((folder / "outcome.json").read_text())
    (folder / "outcome.json").write_text(json.dumps({**data, "format": 3}))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a folder: name the folder of a run"),
        (["empty"], "empty has no outcome.json: name the folder of a run"),
        (["new"], "new/outcome.json has outcome format 3, this version reads 2: run its recipe again"),
        (["good", "new"], "new/outcome.json has outcome format 3, this version reads 2: run its recipe again"),
        (
            ["torn"],
            "torn/scores.json cannot be read (Expecting value: line 1 column 1 (char 0)): run its recipe again with --fresh",
        ),
        (
            ["good", "--use", "table"],
            "report 'table' prints text: see it with pdtrim-core show, or say --use of one that writes a file",
        ),
        (["good", "--out", "no/where.html"], "no does not exist: name a file in a folder that does with --out"),
        (["good", "--out", "empty"], "empty is a folder: name a file with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_shown_is_said_in_a_line(words: list[str], message: str, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    runs.write_run(tmp_path / "good", runs.joint())
    other_version(runs.write_run(tmp_path / "new", runs.joint()))
    (runs.write_unfinished(tmp_path / "torn") / "scores.json").write_text("")
    done = cli("report", *words)
    assert (done.code, done.err) == (1, f"error: {message}\n")
    assert not Path("comparison.html").exists()


def test_a_report_that_does_not_exist_is_named_with_the_nearest(cli: Cli, tmp_path: Path) -> None:
    runs.write_run(tmp_path / "good", runs.joint())
    done = cli("report", "good", "--use", "htm")
    assert done.code == 2
    assert "there is no report 'htm'; did you mean 'html'?" in done.err


def test_a_broken_recipe_of_a_run_that_stopped_is_named(cli: Cli, tmp_path: Path) -> None:
    (runs.write_unfinished(tmp_path / "r") / "recipe.toml").write_text("=")
    done = cli("report", "r")
    assert done.code == 1
    assert done.err.startswith("error: r/recipe.toml cannot be read (")
    assert done.err.endswith("): run its recipe again with --fresh\n")
