"""What shells complete: names of components, presets and keys of recipes, each on a line of its own."""

from __future__ import annotations

import pytest

from pdtrim_core.api.kinds import KINDS
from pdtrim_core.recipe import presets
from tests.e2e.conftest import Cli


def completed(program: Cli, words: str, shell: str = "bash") -> list[str]:
    """Return the lines that a shell is given for the last of these words."""
    line = f"pdtrim-core {words}"
    count = len(line.split()) - (not line.endswith(" "))
    given = {"_PDTRIM_CORE_COMPLETE": f"complete_{shell}", "COMP_WORDS": line, "COMP_CWORD": f"{count}"}
    asked = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done = program(**given, **asked)
    assert done.err == ""
    return [line for line in done.out.splitlines() if line]


@pytest.mark.parametrize(
    ("words", "found"),
    [
        ("prune m --preset fa", ["fast"]),
        ("prune m --method shortg", ["shortgpt"]),
        ("prune m --dtype b", ["bfloat16"]),
        ("prune m --placement s", ["stream"]),
        ("export runs/r --to che", ["checkpoints"]),
        ("apply plan.json m --to checkpoints,g", ["checkpoints,gguf"]),
        ("eval runs/r --variants unre", ["unrecovered"]),
        ("compare a b --variants staged,de", ["staged,decode", "staged,dense"]),
        ("sample runs/r --variants dense,u", ["dense,unified", "dense,unrecovered", "dense,unquantized", "dense,unselected"]),
        ("run r.toml --set prune.f", ["prune.fraction"]),
        ("check r.toml --set splitter.thr", ["splitter.threshold"]),
        ("sweep s.toml --set recovery.0.rid", ["recovery.0.ridge"]),
        ("score s.toml --set model.dt", ["model.dtype"]),
        ("prune m --set evaluation.answer", ["evaluation.answer_tokens"]),
        ("describe shortg", ["shortgpt"]),
        ("describe sear", ["searcher"]),
        ("describe distiller ms", ["mse", "mse+cosine"]),
        ("describe preset be", ["best"]),
        ("describe nothing be", []),
        ("new rec", ["recovery"]),
    ],
)
def test_a_shell_completes_what_the_plugins_and_recipes_know(program: Cli, words: str, found: list[str]) -> None:
    assert completed(program, words) == found


def test_a_shell_is_given_a_word_a_line_with_what_it_means(program: Cli) -> None:
    lines = completed(program, "prune m --preset ", "fish")
    assert [line.split("\t")[0] for line in lines] == list(presets.NAMES)
    assert all("\t" in line for line in lines)
    kinds = completed(program, "new ", "fish")
    assert [line.strip() for line in kinds] == list(KINDS)
