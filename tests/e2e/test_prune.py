"""`pdtrim-core prune`: a model pruned without a recipe, by recipes that ship."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.recipe import presets
from pdtrim_core.results.run_folder import load_outcome

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
SMALL = tuple(
    word
    for setting in ("calibration.samples=8", "calibration.held_out=4", "evaluation.fidelity=false", "recovery=none")
    for word in ("--set", setting)
)


def test_what_was_run_is_a_recipe_in_the_folder_of_the_run(cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    done = cli("prune", tiny_checkpoint, "--blocks", 2, "--preset", "fast", *SMALL)
    assert done.code == 0, done.err
    out = tmp_path / "runs" / "tiny-llama-fast-2-blocks"
    assert str(out.relative_to(tmp_path) / "recipe.toml") in done.out
    assert sum(len(element.blocks) for element in load_outcome(out).plan.plan.decode) == 2
    recipe = tomllib.loads((out / "recipe.toml").read_text())
    assert recipe["prune"]["blocks"] == 2
    assert recipe["searcher"]["candidates"] == 6
    assert cli("check", out / "recipe.toml").code == 0


def test_each_option_is_a_key_of_the_recipe(cli: Cli, tiny_checkpoint: Path) -> None:
    words = ("--fraction", 0.2, "--prefill-at-most", 0.7, "--method", "shortgpt", "--dtype", "bfloat16", "--placement", "cpu")
    done = cli("prune", tiny_checkpoint, *words, "--out", "here", "--dry-run", "--set", "seed=3")
    assert done.code == 0, done.err
    recipe = tomllib.loads(done.out)
    assert (recipe["out"], recipe["seed"], recipe["prune"]["fraction"]) == ("here", 3, 0.2)
    assert (recipe["pruner"]["use"], recipe["splitter"]["prefill_at_most"]) == ("shortgpt", 0.7)
    assert (recipe["model"]["dtype"], recipe["model"]["placement"]) == ("bfloat16", "cpu")


def test_without_a_preset_channels_go_and_a_count_of_blocks_is_of_whole_blocks(cli: Cli, tiny_checkpoint: Path) -> None:
    told: dict[str, dict[str, Any]] = {}
    for name, words in {
        "share": ("--fraction", 0.2),
        "count": ("--blocks", 2),
        "both": ("--blocks", 2, "--preset", "best"),
    }.items():
        done = cli("prune", tiny_checkpoint, *words, "--prefill-at-most", 0.9, "--dry-run")
        assert done.code == 0, done.err
        told[name] = tomllib.loads(done.out)
    assert [recipe.get("pruner", {}).get("use") for recipe in told.values()] == ["fisher", None, "fisher"]
    assert [recipe["splitter"]["use"] for recipe in told.values()] == ["mixed-tail", "kv-tail", "mixed-tail"]
    assert {recipe["splitter"]["prefill_at_most"] for recipe in told.values()} == {0.9}
    assert [Path(recipe["out"]).name.partition("llama-")[2] for recipe in told.values()] == [
        "default-20-percent",
        "blocks-2-blocks",
        "best-2-blocks",
    ]


@pytest.mark.parametrize("name", presets.NAMES)
def test_every_preset_is_a_recipe_that_says_what_it_is_for(cli: Cli, tiny_checkpoint: Path, name: str) -> None:
    done = cli("prune", tiny_checkpoint, "--preset", name, "--blocks", 2, "--dry-run")
    assert done.code == 0, done.err
    assert not done.err
    assert cli("describe", "preset", name).out == presets.text_of(name)
    assert presets.about(name).endswith(".")


@pytest.mark.parametrize("method", ["shortgpt", "flap", "llm-pruner", "streamline"])
@pytest.mark.parametrize("name", presets.NAMES)
def test_another_pruner_takes_from_a_preset_what_it_has_a_use_for(
    cli: Cli, tiny_checkpoint: Path, name: str, method: str
) -> None:
    done = cli("prune", tiny_checkpoint, "--preset", name, "--method", method, "--fraction", 0.2, "--dry-run")
    assert done.code == 0, done.err
    assert not done.err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--blocks", 2, "--fraction", 0.2), "--blocks and --fraction both say how much goes: leave out one of them"),
        (("--preset", "fsat"), "there is no preset 'fsat'; did you mean 'fast'?"),
        (("--method", "shortgtp"), "did you mean 'shortgpt'?"),
        (("--fraction", 2), "prune.fraction"),
        (("--prefill-at-most", 3), "splitter.prefill_at_most"),
        (("--dtype", "float8"), "model.dtype"),
    ],
)
def test_what_is_wrong_is_told_in_a_line_before_anything_is_opened(
    cli: Cli, tmp_path: Path, words: tuple[object, ...], told: str
) -> None:
    done = cli("prune", tmp_path / "nowhere", *words)
    assert done.code != 0
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 2  # how many problems there are, and the problem


def test_a_kind_alone_and_preset_alone_list_what_there_is(cli: Cli) -> None:
    listed = cli("describe", "preset").out.splitlines()
    assert [line.split()[0] for line in listed] == list(presets.NAMES)
    assert json.loads(cli("describe", "preset", "--json").out) == {name: presets.about(name) for name in presets.NAMES}
    of_kind = cli("describe", "quantizer").out
    assert of_kind.startswith("rtn  Rounds each weight to the nearest number of a format")
    assert cli("describe", "formats").out == of_kind  # its key in a recipe
    assert "did you mean 'preset'?" in cli("describe", "presetz").err


def test_an_unknown_preset_is_not_described(cli: Cli) -> None:
    assert "; did you mean 'best'?" in cli("describe", "preset", "bset").err
