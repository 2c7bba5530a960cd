"""Looking at a recipe or a run never runs a plugin file that it names; running it does, or --trust."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pdtrim_core import PdtrimError, Recipe, load_plugins, load_run
from tests.e2e.conftest import Cli

PLUGIN = """
from pathlib import Path
from pdtrim_core.api import Report, Scorer, Scores, hookimpl

Path({mark!r}).touch()

class Own(Scorer):
    name = "own"

    def score(self, context):
        return Scores(tuple(range(context.block_count)))

class OwnReport(Report):
    name = "own-report"

    def report(self, outcome, out):
        return "a report of its own"

@hookimpl
def pdtrim_scorers():
    yield Own

@hookimpl
def pdtrim_reports():
    yield OwnReport
"""
LOOKING = [
    ("check", "own.toml"),
    ("check", "foreign/recipe.toml", "--budget"),
    ("run", "own.toml", "--dry-run"),
    ("sweep", "sweep.toml", "--dry-run"),
    ("check", "sweep.toml"),
    ("show", "foreign"),
    ("show", "foreign", "--json"),
    ("report", "foreign"),
    ("compare", "foreign"),
    ("runs", "."),
    ("export", "foreign", "--to", "plan", "--out", "exported"),
    ("bench", "foreign", "--forward", "8", "--prompt-lengths", "8", "--contexts", "8", "--repeats", "1"),
    ("eval", "foreign", "--tasks", "piqa", "--data", "data"),
]


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """A file that the plugin file makes when it is run."""
    return tmp_path / "it ran"


@pytest.fixture
def own(recipe: Path, tmp_path: Path, mark: Path, cli: Cli) -> Path:
    """A recipe with a plugin file, and the folder of a run of it that was brought from somewhere else."""
    (tmp_path / "own.py").write_text(PLUGIN.format(mark=str(mark)))
    text = recipe.read_text().replace("blocks = 2\n", "blocks = 2\nmerges = false\n")
    path = tmp_path / "own.toml"
    path.write_text('plugins = ["own.py"]\nscorer = "own"\nreport = ["own-report", "table"]\n' + text)
    (tmp_path / "sweep.toml").write_text('sweep = 1\nrecipe = "own.toml"\n[grid]\nseed = [0, 1]\n')
    done = cli("run", path, "--out", "run")
    assert (done.code, mark.exists()) == (0, True), done.err
    assert "a report of its own" in done.out
    shutil.move(tmp_path / "run", tmp_path / "foreign")
    mark.unlink()
    return path


@pytest.mark.parametrize("words", LOOKING, ids=lambda words: " ".join(words[:2]))
def test_looking_runs_no_plugin_file(own: Path, cli: Cli, mark: Path, words: tuple[str, ...]) -> None:
    done = cli(*words)
    assert not mark.exists()
    assert done.code in (0, 2)
    assert own.exists()
    said = done.out + done.err
    assert (done.code == 0 and words[0] not in ("check", "export", "bench", "eval")) or "not run: say --trust" in said, said


def test_what_a_run_has_to_show_is_shown_without_its_own_report(own: Path, cli: Cli, mark: Path) -> None:
    done = cli("show", "foreign")
    assert (done.code, mark.exists()) == (0, False)
    assert "decode" in done.out
    assert "a report of its own" not in done.out
    assert (
        f"warning: report: there is no report 'own-report'; there are html, table ({own.with_name('own.py')} not run: say --trust"
        in done.err
    )
    trusted = cli("show", "foreign", "--trust")
    assert ("a report of its own" in trusted.out, mark.exists()) == (True, True)


@pytest.mark.parametrize(
    "words", [("check", "own.toml"), ("check", "sweep.toml"), ("run", "own.toml", "--dry-run"), LOOKING[-3]], ids=lambda w: w[0]
)
def test_trust_runs_it(own: Path, cli: Cli, mark: Path, words: tuple[str, ...]) -> None:
    done = cli(*words, "--trust")
    assert (done.code, mark.exists(), own.exists()) == (0, True, True), done


def test_a_recipe_that_needs_nothing_of_the_file_is_checked_and_the_file_named(own: Path, cli: Cli, mark: Path) -> None:
    done = cli("check", own, "--set", "scorer=cosine", "--set", 'report=["table"]')
    assert (done.code, mark.exists()) == (0, False)
    assert done.out == f"{own}: ok\n{own}: {own.with_name('own.py')} not run: say --trust if you trust it\n"


def test_a_plugin_file_that_is_not_there_is_named_by_check(own: Path, cli: Cli) -> None:
    done = cli("check", own, "--set", 'plugins=["gone.py"]')
    assert (done.code, f"plugin file {own.with_name('gone.py')} does not exist" in done.out) == (1, True)


def test_python_runs_the_files_of_a_recipe_that_is_made_and_not_those_of_a_run_that_is_opened(own: Path, mark: Path) -> None:
    with pytest.raises(PdtrimError, match="not run: say --trust"):
        load_run(own.with_name("foreign"))
    with pytest.raises(PdtrimError, match="not run: say --trust"):
        Recipe.read(own, trust=False)
    assert load_plugins([own.with_name("own.py")], trust=False).not_run == (own.with_name("own.py"),)
    assert not mark.exists()
    assert load_run(own.with_name("foreign"), trust=True).recipe.scorer.name == "own"
    assert Recipe.read(own).scorer.name == "own"
    assert mark.exists()
