"""Names and texts that would steer a terminal come out written out, whatever command prints them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
EVIL = "\x1b[2J\x9b1m\u202ex"
SHOWN = "\\x1b[2J\\x9b1m\\u202ex"
FAILING = '''
from pdtrim_core.api import Scorer, hookimpl


class Evil(Scorer):
    """A scorer that fails \x1b[2J."""

    name = "evil"

    def score(self, context):
        raise ValueError("\\x1b[2J failed \\u202e")


@hookimpl
def pdtrim_scorers():
    yield Evil
'''


def harmless(*texts: str) -> bool:
    return not any(letter in text for text in texts for letter in "\x1b\x9b\u202e")


@pytest.fixture
def run(cli: Cli, recipe: Path) -> Path:
    """A run in a folder with such a name, whose outcome names a model so."""
    out = Path(f"run {EVIL}")
    done = cli("run", recipe, "--out", out, "--set", 'report=["table", "html"]')
    assert done.code == 0
    assert f"run {SHOWN}" in done.err
    assert f"run {SHOWN}" in done.out
    assert harmless(done.out, done.err)
    text = (out / "outcome.json").read_text()
    name = json.loads(text)["model"]
    (out / "outcome.json").write_text(text.replace(json.dumps(name), json.dumps(f"model {EVIL}")))
    return out


@pytest.mark.parametrize(
    "words", [["show"], ["report"], ["compare"], ["compare", "--markdown"], ["compare", "--latex"], ["runs"], ["runs", "--json"]]
)
def test_a_folder_and_a_model_with_such_names(cli: Cli, run: Path, words: list[str]) -> None:
    command, *options = words
    folder = "." if command == "runs" else run
    done = cli(command, folder, *options)
    assert done.code == 0, done.err
    assert harmless(done.out, done.err)
    assert "[2J" in done.out
    if "--json" in options:
        (found,) = json.loads(done.out)
        assert found["path"] == str(run)


def test_the_page_of_such_a_run(cli: Cli, run: Path) -> None:
    assert cli("report", run).code == 0
    page = (run / "report.html").read_text()
    assert harmless(page)
    assert f"model {SHOWN}" in page


def test_a_recipe_in_toml_reads_back(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    done = cli("run", recipe, "--dry-run", "--out", "a\x1b[2J\u202eb")
    assert harmless(done.out)
    (tmp_path / "again.toml").write_text(done.out)
    assert cli("run", "again.toml", "--dry-run").out == done.out


def test_what_a_plugin_says_when_it_fails(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    plugin = tmp_path / "evil\x1b[2J.py"
    plugin.write_text(FAILING)
    data = recipe.read_text()
    recipe.write_text(f'plugins = ["evil\\u001b[2J.py"]\n{data}')
    done = cli("run", recipe, "--set", "scorer=evil", "--set", 'searcher="greedy"')
    assert done.code == 1
    assert "evil\\x1b[2J.py" in done.err
    assert "ValueError: failed" in done.err
    assert harmless(done.out, done.err)
    done = cli("run", recipe, "--set", "scorer=evil", "--debug", "--fresh")
    assert "Traceback" in done.err
    assert harmless(done.out, done.err)


@pytest.mark.parametrize(
    "words",
    [
        ["check", f"{EVIL}.toml"],
        ["show", EVIL],
        ["run", f"{EVIL}.toml"],
        ["describe", "scorer", EVIL],
        [EVIL],
        ["compare", EVIL],
        ["serve", EVIL],
        ["export", EVIL, "--to", EVIL],
        ["run", "recipe.toml", "--set", f"scorer={EVIL}"],
        ["check", "recipe.toml", "--for", EVIL],
    ],
)
def test_what_an_error_names(cli: Cli, recipe: Path, words: list[str]) -> None:
    assert recipe.is_file()
    done = cli(*words)
    assert done.code in (1, 2)
    assert harmless(done.out, done.err)
    assert "\\x1b[2J" in done.out + done.err
