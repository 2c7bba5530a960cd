"""`runs` and `cache` from the command line: lists, sizes, and a question before anything is deleted."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


@pytest.fixture
def two_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, size in (("one", 2000), ("two", 10)):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        (folder / "recipe.toml").write_text('[model]\npath = "me/model"\n')
        (folder / "journal.jsonl").write_text("x" * size)
    (tmp_path / "runs" / "one" / "outcome.json").write_text("{}")
    (tmp_path / "runs" / "one" / "decode").mkdir()
    return tmp_path / "runs"


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    import io

    stream = io.StringIO(text)
    stream.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stdin", stream)


@pytest.mark.usefixtures("two_runs")
def test_runs_are_listed_with_their_sizes(cli: Cli) -> None:
    done = cli("runs")
    assert done.code == 0
    one, two, total = done.out.splitlines()
    assert one.split()[:2] == ["runs/one", "finished"]
    assert one.endswith("  me/model     2.0 kB")
    assert two.split()[:2] == ["runs/two", "unfinished"]
    assert total == "2 runs, 2.1 kB"


@pytest.mark.usefixtures("two_runs")
def test_runs_are_listed_as_json(cli: Cli) -> None:
    one, two = json.loads(cli("runs", "--json").out)
    assert (one["path"], one["state"], one["besides"], one["deleted"]) == ("runs/one", "finished", ["decode"], False)
    assert two["state"] == "unfinished"


def test_where_there_are_no_runs_that_is_said(cli: Cli) -> None:
    assert cli("runs").out == "no runs here\n"


@pytest.mark.parametrize(("answer", "left"), [("n\n", {"one", "two"}), ("y\n", {"one"}), ("\n", {"one", "two"})])
def test_unfinished_runs_are_deleted_after_a_yes(
    cli: Cli, two_runs: Path, answer: str, left: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers(monkeypatch, answer)
    done = cli("runs", "--unfinished", "--clean")
    assert (done.code, done.out) == (0, "")
    assert "Delete 1 run, 36 B?" in done.err
    assert {path.name for path in two_runs.iterdir()} == left


def test_what_else_lies_in_a_run_is_said_before_it_goes(cli: Cli, two_runs: Path) -> None:
    done = cli("runs", "runs/one", "--clean", "--yes")
    assert done.err.splitlines() == ["runs/one: 2.0 kB, with decode", "deleted 1 run, 2.0 kB"]
    assert [path.name for path in two_runs.iterdir()] == ["two"]


@pytest.mark.parametrize("command", ["runs", "cache"])
def test_nothing_is_deleted_where_nobody_can_be_asked(cli: Cli, two_runs: Path, command: str, tmp_path: Path) -> None:
    (tmp_path / "cache" / "pdtrim-core" / "merges").mkdir(parents=True)
    done = cli(command, "--clean")
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "  --clean needs a confirmation before it deletes, and this is no terminal: say --yes"
    assert len(list(two_runs.iterdir())) == 2
    assert (tmp_path / "cache" / "pdtrim-core" / "merges").is_dir()


def test_the_cache_is_listed_and_cleaned_by_parts(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "cache" / "pdtrim-core"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli("cache").out == f"{folder} is empty\n"
    for part in ("merges", "models"):
        (folder / part).mkdir(parents=True)
        (folder / part / "file").write_bytes(b"x" * 1500)
    assert cli("cache").out.splitlines() == [str(folder), "merges      1 file      1.5 kB", "models      1 file      1.5 kB"]
    answers(monkeypatch, "y\n")
    done = cli("cache", "merges", "--clean", "--json")
    assert json.loads(done.out) == {
        "folder": str(folder),
        "parts": [{"name": "merges", "files": 1, "size": 1500, "deleted": True}],
    }
    assert f"Delete merges in {folder}, 1.5 kB?" in done.err
    assert [path.name for path in folder.iterdir()] == ["models"]
    done = cli("cache", "merge", "--clean", "--yes")
    assert (done.code, done.err) == (1, "error: the cache has no part 'merge'; there is models\n")


# Ranking


def test_blocks_are_ranked_without_a_search(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    done = cli("score", recipe)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].endswith(": scorer cosine over 8 items; higher is safer to remove")
    assert lines[2].split() == ["rank", "block", "score"]
    rows = [line.split() for line in lines[3:]]
    assert [row[0] for row in rows] == ["1", "2", "3", "4", "5", "6"]
    assert sorted(row[1] for row in rows) == ["0", "1", "2", "3", "4", "5"]
    assert [float(row[2]) for row in rows] == sorted((float(row[2]) for row in rows), reverse=True)
    data = json.loads(cli("score", recipe, "--json").out)
    assert [str(block) for block in data["ranking"]] == [row[1] for row in rows]
    assert (len(data["scores"]), len(data["pairs"])) == (6, 5)
    assert not (tmp_path / "runs").exists()


def test_the_ranking_is_the_one_of_a_run(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    cli("run", recipe, "--set", "searcher=greedy", "--out", "r")
    assert (
        json.loads(cli("score", recipe, "--json").out)["scores"]
        == json.loads((tmp_path / "r" / "scores.json").read_text())["block"]
    )


def test_a_recipe_with_a_pruner_has_no_scorer_to_rank_by(cli: Cli, recipe: Path) -> None:
    recipe.write_text('pruner = "shortgpt"\n' + recipe.read_text().replace("\n[searcher]\nt_min = 5.0\n", ""))
    done = cli("score", recipe)
    assert (done.code, done.out) == (2, "")
    assert done.err.splitlines()[-1] == "  pruner 'shortgpt' replaces the scorer: leave it out to see scores"
