"""The JSON schema of recipes: it takes what reading takes, and refuses what reading refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from pdtrim_core import PluginHost, RecipeError
from pdtrim_core.recipe.json_schema import schema
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.toml_data import load
from pdtrim_core.sweeping.sweep import is_sweep
from tests.unit.examples import given
from tests.unit.recipe.recipes import BASE, RECIPES

ROOT = Path(__file__).parents[3]


def meets(part: Any, value: Any, whole: dict[str, Any]) -> bool:
    """Tell whether a value meets a part of a JSON schema; knows the words that ours uses, and refuses others."""
    if isinstance(part, bool):
        return part
    if "$ref" in part:
        return meets(whole["$defs"][part["$ref"].removeprefix("#/$defs/")], value, whole)
    types_of: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    kind = part.get("type")
    is_bool = isinstance(value, bool)
    checks = [
        kind is None
        or (kind == "null" and value is None)
        or (kind != "null" and isinstance(value, types_of[kind]) and (kind == "boolean" or not is_bool)),
        "const" not in part or value == part["const"],
        "enum" not in part or value in part["enum"],
        "anyOf" not in part or any(meets(choice, value, whole) for choice in part["anyOf"]),
        "oneOf" not in part or sum(meets(choice, value, whole) for choice in part["oneOf"]) == 1,
    ]
    if isinstance(value, (int, float)) and not is_bool:
        checks += [
            value >= part.get("minimum", value),
            value <= part.get("maximum", value),
            value > part.get("exclusiveMinimum", value - 1),
            value < part.get("exclusiveMaximum", value + 1),
        ]
    if isinstance(value, list):
        checks += [meets(part.get("items", True), entry, whole) for entry in value]
        checks += [len(value) >= part.get("minItems", 0)]
    if isinstance(value, dict):
        properties = part.get("properties", {})
        checks += [key in value for key in part.get("required", [])]
        checks += [meets(properties.get(key, part.get("additionalProperties", True)), v, whole) for key, v in value.items()]
    return all(checks)


@pytest.fixture(scope="module")
def whole(host: PluginHost) -> dict[str, Any]:
    return schema(host)


def refs(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [ref for value in part.values() for ref in refs(value)]
    return [ref for value in part for ref in refs(value)] if isinstance(part, list) else []


def test_the_schema_says_what_it_is(whole: dict[str, Any]) -> None:
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert whole["title"] == "pdtrim-core recipe"
    assert whole["type"] == "object"
    assert whole["additionalProperties"] is False
    assert set(refs(whole)) <= {f"#/$defs/{name}" for name in whole["$defs"]}


def test_the_schema_uses_only_words_that_this_file_checks(whole: dict[str, Any]) -> None:
    told = {"title", "description", "default", "$schema", "$defs", "prefixItems", "uniqueItems", "format"}
    known = {"$ref", "type", "const", "enum", "anyOf", "oneOf", "items", "properties", "required", "additionalProperties"}
    known |= {"minItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

    def words(part: Any) -> set[str]:
        if not isinstance(part, dict):
            return set()
        inner = [*part.get("properties", {}).values(), *part.get("$defs", {}).values()]
        inner += [*part.get("anyOf", []), *part.get("oneOf", []), part.get("items"), part.get("additionalProperties")]
        return set(part).union(*(words(one) for one in inner))

    assert words(whole) <= told | known


# Sweeps are read in test_sweep.py; recipes of plugins that are examples themselves are run where those are installed.
EXAMPLES = [
    path
    for path in sorted(ROOT.glob("examples/**/*.toml"))
    if not path.relative_to(ROOT / "examples").parts[0].startswith(("third_party_", "plain_file")) and not is_sweep(load(path))
]


def test_recipes_of_the_paper_and_the_quickstart_name_their_objective() -> None:
    """The paper's is accuracy, which is not the default."""
    recipes = [file for file in EXAMPLES if "paper" in file.parts or file.name == "quickstart.toml"]
    assert len(recipes) > 3  # else nothing is looked at
    assert [file.name for file in recipes if "objective" not in load(file)] == []


def test_recipes_of_the_paper_recover_nothing() -> None:
    recipes = [load(file) for file in EXAMPLES if "paper" in file.parts]
    assert [recipe.get("recovery") for recipe in recipes] == ["none"] * 4


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_schema_takes_the_examples(host: PluginHost, whole: dict[str, Any], file: Path) -> None:
    data = load(file)
    assert meets(whole, data, whole)
    Recipe.from_data(data, where=str(file), host=host)


@given(RECIPES)
def test_the_schema_takes_every_resolved_recipe(host: PluginHost, whole: dict[str, Any], data: dict[str, Any]) -> None:
    assert meets(whole, tomli.loads(tomli_w.dumps(Recipe.from_data(data, where="r.toml", host=host).to_data())), whole)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model": "package:none"},
        {"searcher": {}},
        {"searcher": {"t0": 4.0}},
        {"searcher": {"use": "pdtrim-core/annealing", "t0": 4.0}},
        {"scorer": "pdtrim-core/cosine"},
        {"exporter": "plan", "report": [{"use": "table"}]},
        {"prune": {"blocks": 1, "merge_threshold": {"quantile": 0.5}}},
        {"prune": {"blocks": 1, "merge_threshold": 1}},
        {"prune": {"blocks": 1, "merge_threshold": 0.9}},
    ],
    ids=str,
)
def test_the_schema_takes_what_reading_takes(host: PluginHost, whole: dict[str, Any], keys: dict[str, Any]) -> None:
    Recipe.from_data({**BASE, **keys}, where="r.toml", host=host)
    assert meets(whole, {**BASE, **keys}, whole)


@pytest.mark.parametrize(
    "keys",
    [
        {"sceed": 1},
        {"seed": -1},
        {"recipe": 2},
        {"model": {}},
        {"model": 5},
        {"model": {"use": "hubb", "path": "x"}},
        {"prune": {"blocks": -1}},
        {"prune": {"blocks": True}},
        {"prune": {"blocks": 1, "merge_threshold": "x"}},
        {"prune": {"blocks": 1, "merge_threshold": True}},
        {"prune": {"blocks": 1, "merge_threshold": {"quantil": 0.9}}},
        {"prune": {"blocks": 1, "merge_threshold": {"quantile": 9}}},
        {"report": {}},
        {"scorer": "cosin"},
        {"searcher": {"use": "annealing", "t_0": 4}},
        {"searcher": {"use": "annealing", "alpha": 2.0}},
        {"report": ["tabel"]},
        {"evaluation": {"first_token": "x"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_reading_refuses(host: PluginHost, whole: dict[str, Any], keys: dict[str, Any]) -> None:
    with pytest.raises(RecipeError):
        Recipe.from_data({**BASE, **keys}, where="r.toml", host=host)
    assert not meets(whole, {**BASE, **keys}, whole)
