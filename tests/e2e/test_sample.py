"""`pdtrim-core sample`: what a run's models write, side by side."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import load_run
from pdtrim_core.cli.sample import _Line
from pdtrim_core.pipeline.pipeline import run as run_recipe
from pdtrim_core.recipe.recipe import Recipe

if TYPE_CHECKING:
    from pdtrim_core.results.task_results import Variant
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
VARIANTS: tuple[Variant, ...] = ("dense", "unified", "staged")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    out = tmp_path_factory.mktemp("sampled") / "run"
    data = {
        "model": {"path": str(tiny_checkpoint)},
        "recovery": "none",
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "prune": {"blocks": 2, "merges": False},
        "searcher": "greedy",
        "splitter": "dense-prefill",
        "evaluation": {"fidelity": False},
    }
    run_recipe(Recipe.from_data(data, where="sampled", out=out))
    return out


def test_each_variant_answers_behind_its_name_as_it_is_served(cli: Cli, run: Path) -> None:
    done = cli("sample", run, "--prompt", "seven", "--max-new-tokens", 6)
    assert done.code == 0, done.err
    assert done.out.splitlines()[0] == "prompt 1 of 1: seven"
    places = [done.out.index(f"\n{name}") for name in VARIANTS]
    assert places == sorted(places)
    found = json.loads(cli("sample", run, "--prompt", "seven", "--max-new-tokens", 6, "--json").out)
    loaded = load_run(run)
    prompt = tuple(loaded.dense.tokenizer("seven")["input_ids"])
    for name in VARIANTS:
        tokens = loaded.two_phase(name).generate(prompt, 6)
        assert found[0]["answers"][name] == loaded.dense.tokenizer.decode(tokens)


def test_prompts_that_the_run_held_out_are_taken_where_none_is_given(cli: Cli, run: Path) -> None:
    found = json.loads(cli("sample", run, "--max-new-tokens", 2, "--variants", "staged", "--json").out)
    assert len({one["prompt"] for one in found}) == 3
    assert all(list(one["answers"]) == ["staged"] for one in found)


def test_a_file_is_one_prompt(cli: Cli, run: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("two lines,\nand one prompt")
    found = json.loads(cli("sample", run, "--file", file, "--max-new-tokens", 2, "--json").out)
    assert [one["prompt"] for one in found] == ["two lines,\nand one prompt"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--prompt", " "), "error: a prompt is empty: say what to answer"),
        (("--file", "nowhere.txt"), "error: --file: there is no file nowhere.txt"),
        (("--file", "."), "error: --file: .: it is a folder"),
        (("--variants", "stagd"), "error: unknown variant 'stagd'; did you mean 'staged'?"),
        (("--prompt", "a", "--chat"), "has no chat template: leave out --chat"),
        (("--variants", "unselected"), "has no variant 'unselected': its decode reads all of every prompt"),
        (("--no-chat",), "are of prompts that you give: say --prompt or --file, too"),
    ],
)
def test_what_cannot_be_answered_is_told_in_a_line(cli: Cli, run: Path, words: tuple[object, ...], told: str) -> None:
    done = cli("sample", run, *words)
    assert (done.code != 0, done.out) == (True, "")
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("dense", "own", "shown"),
    [
        ("abc", "abc", "staged   abc   (as dense)\n"),
        ("abc", "abd", "staged   ab>>d\n"),
        ("ab", "abc", "staged   ab>>c\n"),
        ("abc", "ab", "staged   ab\n"),
        ("abc", "xbc", "staged   >>xbc\n"),
        ("a\nb", "a\nc", "staged   a\n         >>c\n"),
        (None, "abc", "staged   abc\n"),
    ],
)
def test_the_place_is_marked_where_an_answer_leaves_the_dense_one(
    capsys: pytest.CaptureFixture[str], dense: str | None, own: str, shown: str
) -> None:
    line = _Line("staged", lambda tokens: "".join(map(chr, tokens)), None if dense is None else [*map(ord, dense)])
    for character in own:
        line.token(ord(character))
    line.end()
    assert capsys.readouterr().out == shown


def test_a_character_of_several_tokens_is_printed_when_it_is_whole(capsys: pytest.CaptureFixture[str]) -> None:
    def decode(tokens: Any) -> str:
        return bytes(tokens).decode("utf-8", errors="replace")

    line = _Line("staged", decode, None)
    printed = []
    for byte in "é!".encode():
        line.token(byte)
        printed.append(capsys.readouterr().out)
    assert printed == ["staged   ", "é", "!"]
