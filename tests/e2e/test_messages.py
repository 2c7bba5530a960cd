"""Commands that are said wrongly are answered in one line that says what to say instead."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Cli

HELP = " (see pdtrim-core"


@pytest.mark.parametrize("words", ["show", "compare", "report", "export --to vllm", "eval --tasks piqa", "bench", "serve"])
def test_a_recipe_where_a_run_is_asked_is_told(cli: Cli, recipe: Path, words: str) -> None:
    command, *more = words.split()
    done = cli(command, recipe.name, *more)
    assert done.code == 1
    assert done.err == (
        "error: recipe.toml is a recipe, and a run is asked for here: name the folder of its run, such as runs/recipe\n"
    )


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("run r.toml --drry-run", "pdtrim-core run has no option --drry-run; did you mean '--dry-run'?"),
        ("plugins --jsn", "pdtrim-core plugins has no option --jsn; did you mean '--json'?"),
        ("schema --nothing", "pdtrim-core schema has no option --nothing (see pdtrim-core schema --help)"),
        ("run --model gpt2", "pdtrim-core run has no option --model: model is a key of the recipe: say --set model=..., or "),
        ("check r.toml --seed=3", "pdtrim-core check has no option --seed: seed is a key of the recipe: say --set seed=..., or "),
        ("sweep --searcher greedy", "pdtrim-core sweep has no option --searcher: searcher is a key of the recipe: say --set "),
        ("run", "pdtrim-core run takes a recipe, a TOML file: name one"),
        ("sweep", "pdtrim-core sweep takes a sweep, a TOML file: name one"),
        ("rum r.toml", "No such command 'rum'. Did you mean 'run'?"),
        ("run r.toml more", "Got unexpected extra argument(s) (more)"),
        ("eval runs/x --limit many", "Invalid value for '--limit': "),
        ("run x.toml --log-format yaml", "Invalid value for '--log-format': 'yaml' is not one of 'text', 'json'"),
    ],
)
def test_a_command_line_that_is_none_is_answered_in_one_line(cli: Cli, words: str, line: str) -> None:
    done = cli(*words.split())
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith(f"error: {line}")
    assert HELP in done.err
    assert done.err.count("\n") == 1


@pytest.mark.parametrize("words", [("-h",), ("run", "-h"), ("cache", "-h")])
def test_help_has_a_short_name(cli: Cli, words: tuple[str, ...]) -> None:
    short = cli(*words)
    assert short.code == 0
    assert short.out.startswith("Usage: pdtrim-core")
    assert short.out == cli(*words[:-1], "--help").out


def test_the_command_alone_shows_what_there_is(cli: Cli) -> None:
    alone = cli()
    assert (alone.code, alone.err) == (0, "")
    assert alone.out == cli("--help").out


@pytest.mark.parametrize("module", ["pdtrim_core", "pdtrim_core.cli"])
def test_the_package_is_the_command(module: str, tmp_path: Path) -> None:
    words = [sys.executable, "-m", module, "run", "--nope"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith("error: pdtrim-core run has no option --nope")


def test_new_that_cannot_write_says_where_else(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = cli("new", "scorer", "mine", "--in", "file/below")
    assert done.code == 1
    assert done.err == "error: cannot write file/below/pdtrim-mine: Not a directory; choose another place with --in\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("seed = 1", "is not a plan: it is no JSON ("),
        ('{"decode": []}', "is not a plan: it has no 'format'"),
        ('{"format": 1, "model": {"name": "m"}}', "is not a plan: it has no "),
        ("[]", "is not a plan: it is no table"),
    ],
)
def test_a_file_that_is_no_plan_leaks_no_class_of_an_error(cli: Cli, tmp_path: Path, text: str, reason: str) -> None:
    (tmp_path / "plan.json").write_text(text)
    done = cli("show", "plan.json")
    assert done.code == 1
    assert reason in done.err
    assert not any(word in done.err for word in ("JSONDecodeError", "KeyError", "TypeError", "Traceback"))


@pytest.mark.parametrize("command", ["check", "run", "score"])
def test_data_that_are_not_there_are_known_before_a_model_is_opened(cli: Cli, recipe: Path, tmp_path: Path, command: str) -> None:
    settings = ("--set", "calibration={use='jsonl', files=['a.jsonl'], held_out_files=['b.jsonl']}", "--set", "model=./gone")
    done = cli(command, recipe, *settings)
    assert done.code == 2
    told = done.out + done.err
    assert [line.strip() for line in told.splitlines()[1:]] == [
        "model.path: model folder ./gone does not exist",
        "calibration.files: calibration file a.jsonl does not exist",
        "calibration.held_out_files: calibration file b.jsonl does not exist",
    ]
    assert "open the model" not in told
    assert not (tmp_path / "runs").exists()


def test_check_refuses_groups_that_do_not_divide_a_model_that_is_here(cli: Cli, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '\n[formats]\ndecode = "W4A16"\ngroup_size = 40\n')
    done = cli("check", recipe)
    assert done.code == 1
    assert "formats: groups of 40 weights do not divide" in done.out


def test_check_refuses_a_fraction_out_of_reach_of_a_model_that_is_here(cli: Cli, recipe: Path) -> None:
    recipe.write_text(recipe.read_text().replace("blocks = 2", "fraction = 0.95"))
    done = cli("check", recipe)
    assert done.code == 1
    assert "prune.fraction = 0.95 cannot be reached" in done.out
    told = done.out.partition("say ")[2].partition(" or less")[0].replace(" ", "")
    assert cli("check", recipe, "--set", told).code == 0
    # Of a model that is elsewhere nothing is known.
    assert cli("check", recipe, "--set", "model=package:nowhere").code == 0
    assert json.loads(cli("check", recipe, "--json").out)[0]["exit_code"] == 1


def test_check_knows_how_many_blocks_a_model_that_is_here_has(cli: Cli, recipe: Path) -> None:
    done = cli("check", recipe, "--set", "prune.blocks=6")
    assert done.code == 1
    assert "cannot remove 6 of the 6 blocks of " in done.out
    assert "(prune.blocks can be 0 to 5)" in done.out
    assert cli("check", recipe, "--set", "prune.blocks=5").code == 0
    # Of a model that is elsewhere nothing is known.
    assert cli("check", recipe, "--set", "prune.blocks=600", "--set", "model=package:nowhere").code == 0


@pytest.mark.parametrize(
    ("evaluate", "problem"),
    [
        ('{tasks = ["arc_easi"], data = "data"}', "unknown task 'arc_easi'; did you mean 'arc_easy'?"),
        ('{tasks = ["arc_easi"], data = "${data}"}', "unknown task 'arc_easi'; did you mean 'arc_easy'?"),
        ('{tasks = ["piqa"], data = "nowhere"}', "nowhere is not a folder"),
        ('{tasks = ["piqa", "boolq"], data = "data"}', "data/boolq/test.jsonl does not exist"),
        ('{tasks = ["humaneval", "piqa"], data = "${data}"}', ""),
    ],
)
def test_tasks_of_a_sweep_are_known_by_check(cli: Cli, recipe: Path, tmp_path: Path, evaluate: str, problem: str) -> None:
    pytest.importorskip("lm_eval")
    (tmp_path / "data" / "piqa").mkdir(parents=True)
    (tmp_path / "data" / "piqa" / "test.jsonl").write_text("{}\n")
    text = f'sweep = 1\nrecipe = "{recipe.name}"\nevaluate = {evaluate}\n[grid]\nseed = [0, 1]\n'
    (tmp_path / "sweep.toml").write_text(text)
    done = cli("check", "sweep.toml")
    assert done.code == (2 if problem else 0), done.out
    assert f"evaluate.tasks: {problem}" in done.out or not problem


def test_files_of_all_tasks_are_known_before_the_first_is_evaluated(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    pytest.importorskip("lm_eval")
    assert cli("run", recipe, "--out", "r", "--set", "prune.merges=false").code == 0
    (tmp_path / "data" / "piqa").mkdir(parents=True)
    (tmp_path / "data" / "piqa" / "test.jsonl").write_text('{"query": "a", "choices": ["b", "c"], "gold": 0}\n')
    for more in ((), ("--num-fewshot", "2")):
        done = cli("eval", "r", "--tasks", "piqa,boolq" if not more else "piqa", "--data", "data", *more)
        assert done.code == 1
        assert "running" not in done.err
        assert ("has none of dev.jsonl" if more else "data/boolq/test.jsonl does not exist") in done.err


def test_a_name_that_a_built_in_has_is_told_and_nothing_is_made(cli: Cli, tmp_path: Path) -> None:
    done = cli("new", "scorer", "cosine")
    assert (done.code, done.out) == (2, "")
    assert "a built-in scorer is called 'cosine': choose another name (pdtrim-core plugins lists all)" in done.err
    assert not (tmp_path / "pdtrim-cosine").exists()
    assert cli("new", "searcher", "cosine").code == 0  # of another kind, so that recipes tell them apart
