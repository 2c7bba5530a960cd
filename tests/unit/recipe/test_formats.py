from __future__ import annotations

from typing import Any

import pytest

from pdtrim_core.errors import RecipeError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.recipe.recipe import Recipe

BASE: dict[str, Any] = {"model": "package:none", "prune": {"blocks": 2}}


def resolved(host: PluginHost, **more: Any) -> Recipe:
    return Recipe.from_data({**BASE, **more}, where="mine.toml", host=host)


def problem_of(host: PluginHost, **more: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        resolved(host, **more)
    (problem,) = caught.value.problems
    return problem


def test_a_recipe_names_the_formats_of_both_stages(host: PluginHost) -> None:
    recipe = resolved(host, formats={"decode": "W4A16", "prefill": "FP8_DYNAMIC", "group_size": 64})
    assert recipe.quantizer is not None
    assert (recipe.quantizer.scheme("decode"), recipe.quantizer.scheme("prefill")) == ("W4A16", "FP8_DYNAMIC")
    assert recipe.to_data()["formats"] == {"use": "rtn", "decode": "W4A16", "prefill": "FP8_DYNAMIC", "group_size": 64}


def test_a_stage_that_names_none_stays_as_it_is(host: PluginHost) -> None:
    recipe = resolved(host, formats={"decode": "W8A16"})
    assert recipe.quantizer is not None
    assert recipe.quantizer.scheme("prefill") is None
    assert resolved(host, formats={"decode": "none"}).quantizer == type(recipe.quantizer)()


def test_a_recipe_without_formats_has_no_quantizer_and_does_not_write_one(host: PluginHost) -> None:
    recipe = resolved(host)
    assert recipe.quantizer is None
    assert "formats" not in recipe.to_data()
    assert "quantizer" not in recipe.kinds


@pytest.mark.parametrize(
    ("formats", "words"),
    [
        ({"decode": "W4A17"}, "formats.decode: quantizer 'rtn' has no format 'W4A17'; did you mean 'W4A16'?"),
        ({"prefill": "w8a8"}, "formats.prefill: quantizer 'rtn' has no format 'w8a8'; did you mean 'W8A8'?"),
        ({"prefill": "FP8"}, "formats.prefill: quantizer 'rtn' has no format 'FP8'; did you mean 'FP8_DYNAMIC'?"),
        ({"decode": "q4_k_m"}, "has no format 'q4_k_m'; there are FP8_DYNAMIC, W4A16, W8A16, W8A8"),
        ({"decode": 4}, "formats.decode: must be a valid string (got 4)"),
        ({"decod": "W4A16"}, "formats.decod: unknown key; did you mean 'decode'?"),
        ({"decode": "W4A16", "group_size": 0}, "formats.group_size: must be greater than or equal to 8 (got 0)"),
        ({"use": "awq", "decode": "W4A16"}, "formats: there is no quantizer 'awq'; there is rtn"),
        ("W4A16", 'formats: must be a table with the formats of the stages, such as decode = "W4A16" (got '),
        (["rtn"], "formats: must be a table with the formats of the stages"),
    ],
)
def test_formats_that_cannot_be_are_one_clear_line(host: PluginHost, formats: Any, words: str) -> None:
    assert words in problem_of(host, formats=formats)


def test_a_quantizer_is_named_in_formats_and_nowhere_else(host: PluginHost) -> None:
    assert problem_of(host, quantizer="rtn") == (
        'quantizer: unknown key; formats are named in a table [formats], such as decode = "W4A16"'
    )


@pytest.mark.parametrize("recovery", ["rtn", ["rtn", "fold"], {"use": "rtn"}])
def test_a_quantizer_in_front_of_a_recovery_is_told_the_order(host: PluginHost, recovery: Any) -> None:
    problem = problem_of(host, recovery=recovery)
    assert problem.startswith("recovery: there is no recovery 'rtn'")
    assert problem.endswith(
        "'rtn' is a quantizer, which the table [formats] names: the order is fixed, prune, recover, quantise, select K/V"
    )


def test_a_model_that_is_replaced_as_a_whole_gets_no_formats(host: PluginHost) -> None:
    problem = problem_of(host, pruner="slicegpt", formats={"decode": "W4A16"})
    assert problem.startswith("formats: pruner 'slicegpt' gives a whole other model")
