"""Recipes as data: a file that is none is named, and settings are put in where they belong."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PluginHost, RecipeError
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import change, load, parse_settings, plugin_files
from tests.unit.recipe.recipes import BASE


def override(data: Mapping[str, Any], settings: list[str]) -> dict[str, Any]:
    return change(data, parse_settings(settings))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        (b"seed = 1\nout = \n", "not valid TOML: Invalid value (at line 2, column 7)"),
        (b"seed = 1\nseed = 2\n", "not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        (b"# \xe4\n", "not text in UTF-8 (byte 2)"),
    ],
    ids=str,
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert (caught.value.where, caught.value.problems) == (str(file), (problem,))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: 1 problem\n  this is a folder: name the recipe in it"


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("seed=5", {"seed": 5}),
        (" seed = 5 ", {"seed": 5}),
        ("prune.merge_threshold={quantile = 0.9}", {"prune": {"blocks": 1, "merge_threshold": {"quantile": 0.9}}}),
        ("prune.blocks=0", {"prune": {"blocks": 0}}),
        ("out=runs/mine", {"out": "runs/mine"}),
        ('out="runs/mine"', {"out": "runs/mine"}),
        ("out=a=b", {"out": "a=b"}),
        ("out=", {"out": ""}),
        ("evaluation.early_stop=false", {"evaluation": {"early_stop": False}}),
        ("scorer=dot", {"scorer": "dot"}),
        ("searcher.t0=5", {"searcher": {"use": "annealing", "t0": 5}}),
        (
            "recovery.1.stage=both",
            {
                "recovery": [
                    {"use": "exact-first-token", "optional": True},
                    {"use": "fold", "stage": "both", "optional": True},
                    {"use": "kv-refit", "optional": True},
                    {"use": "fold", "stage": "decode", "optional": True},
                ]
            },
        ),
        ("report.0.use=html", {"report": [{"use": "html"}]}),
        ("exporter.0=vllm", {"exporter": ["vllm"]}),
        ('exporter=["plan"]', {"exporter": ["plan"]}),
        ("model.dtype=float16", {"model": {"path": "package:none", "dtype": "float16"}}),
    ],
)
def test_a_setting_is_put_in(setting: str, changed: dict[str, Any]) -> None:
    assert override(BASE, [setting]) == {**BASE, **changed}


def test_a_setting_of_a_named_component_keeps_its_name() -> None:
    assert override({"searcher": "random"}, ["searcher.tries=5"]) == {"searcher": {"use": "random", "tries": 5}}
    assert override({"searcher": "annealing"}, ["searcher=greedy"]) == {"searcher": "greedy"}


def test_later_settings_win_and_the_data_are_left_alone() -> None:
    data = {"prune": {"blocks": 1}}
    assert override(data, ["prune.blocks=2", "seed=1", "prune.blocks=3"]) == {"prune": {"blocks": 3}, "seed": 1}
    assert data == {"prune": {"blocks": 1}}
    settings = ["searcher.t0=5", "searcher=random", "searcher.t0=6"]
    assert override(data, settings) == {**data, "searcher": {"use": "random", "t0": 6}}


@pytest.mark.parametrize("setting", ["seed", "=5", "", "searcher..t0=5", ".seed=5", "searcher.=5"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_settings([setting])
    assert str(caught.value) == f"--set: 1 problem\n  '{setting}': say KEY=VALUE, such as searcher.t0=5"


def test_a_setting_of_a_model_given_by_its_path_keeps_the_path(host: PluginHost, tmp_path: Path) -> None:
    settings = ["model.dtype=float16", "model.placement=cpu"]
    assert override({"model": "package:none"}, settings) == {
        "model": {"path": "package:none", "dtype": "float16", "placement": "cpu"}
    }
    file = tmp_path / "mine.toml"
    file.write_text('model = "package:none"\n[prune]\nblocks = 1\n')
    model = Recipe.read(file, changes=parse_settings(settings), host=host).model
    assert (model.name, model.path, model.dtype, model.placement) == ("package", "package:none", "float16", "cpu")


def test_a_setting_may_change_the_path_of_a_model_given_by_its_path(host: PluginHost) -> None:
    assert override({"model": "package:none"}, ["model=gpt2"]) == {"model": "gpt2"}
    data = override({"model": "package:none", "prune": {"blocks": 1}}, ["model.path=gpt2"])
    assert data["model"] == {"path": "gpt2"}
    assert Recipe.from_data(data, where="r.toml", host=host).model.name == "hub"


def test_plugin_files_lie_beside_the_recipe() -> None:
    assert plugin_files({"plugins": ["./a.py", "b/c.py", "/d.py"]}, Path("recipes/r.toml")) == [
        Path("recipes/a.py"),
        Path("recipes/b/c.py"),
        Path("/d.py"),
    ]


@pytest.mark.parametrize("given", [{}, {"plugins": []}, {"plugins": 5}, {"plugins": [5]}, {"plugins": "a.py"}], ids=str)
def test_what_names_no_plugin_files_is_left_to_the_check(given: dict[str, Any]) -> None:
    assert plugin_files(given, Path("r.toml")) == []


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("recovery.tokens=5", "recovery is a list: name one of its entries by its number (recovery.0 to recovery.3)"),
        ("exporter.1.use=vllm", "exporter is a list: name one of its entries by its number (exporter.0)"),
        ("report.-1.use=html", "report is a list: name one of its entries by its number (report.0)"),
    ],
)
def test_an_entry_of_a_list_that_is_not_there_is_named(setting: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(problem)):
        override(BASE, [setting])


@pytest.mark.parametrize("setting", ["plugins=[mine.py]", "searcher={use=random}"])
def test_a_list_whose_quotes_the_shell_took_is_told_how_to_write(setting: str) -> None:
    with pytest.raises(RecipeError, match="single quotes around the whole setting keep the shell from taking them away"):
        parse_settings([setting])
