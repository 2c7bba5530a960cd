"""What a recipe names and is not there is told at once, before a model is opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PluginHost, Recipe, RecipeError
from pdtrim_core.recipe.missing import check_there, missing
from tests.unit.recipe.recipes import BASE


def missing_of(host: PluginHost, **parts: Any) -> list[str]:
    return missing(Recipe.from_data({**BASE, **parts}, where="r.toml", host=host))


@pytest.mark.parametrize(
    ("parts", "problems"),
    [
        ({}, []),
        ({"model": "owner/name"}, []),
        ({"model": "./folder"}, ["model.path: model folder ./folder does not exist"]),
        ({"model": "./one.gguf"}, ["model.path: GGUF file one.gguf does not exist"]),
        (
            {"calibration": {"use": "jsonl", "files": ["a.jsonl", "there.jsonl"], "training_files": ["b.jsonl"]}},
            [
                "calibration.files: calibration file a.jsonl does not exist",
                "calibration.training_files: calibration file b.jsonl does not exist",
            ],
        ),
        ({"calibration": {"use": "text", "files": ["a.txt"]}}, ["calibration.files: calibration file a.txt does not exist"]),
        ({"calibration": {"use": "jsonl", "files": ["${data}/a.jsonl"]}}, []),
        (
            {"recovery": "fold", "recovery_data": {"sources": ["generated", "texts.txt"]}},
            ["recovery_data.sources: text file texts.txt does not exist"],
        ),
        ({"recovery": "none", "recovery_data": {"sources": ["texts.txt"]}}, []),
    ],
)
def test_every_file_that_is_not_there_is_named(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, parts: dict[str, Any], problems: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.jsonl").write_text("{}\n")
    assert missing_of(host, **parts) == problems


def test_the_recipe_is_named(host: PluginHost) -> None:
    recipe = Recipe.from_data({**BASE, "model": "./folder"}, where="r.toml", host=host)
    with pytest.raises(RecipeError, match=r"my.toml: 1 problem"):
        check_there(recipe, "my.toml")
    with pytest.raises(RecipeError, match="the recipe of runs/r: 1 problem"):
        check_there(recipe)
