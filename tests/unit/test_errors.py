"""Errors say what is wrong, where, and what to do."""

from __future__ import annotations

import pytest

from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError, blame, did_you_mean


def test_a_near_name_is_suggested() -> None:
    assert did_you_mean("cosin", ["dot", "cosine", "euclidean"]) == "; did you mean 'cosine'?"


def test_few_names_are_listed_in_order() -> None:
    assert did_you_mean("xyz", ["gain", "cumulative", "budget"]) == "; there are budget, cumulative, gain"


def test_one_name_is_listed_in_the_singular() -> None:
    assert did_you_mean("xyz", ["plan"]) == "; there is plan"


def test_nine_names_are_listed_and_ten_are_not() -> None:
    names = [f"name{letter}" for letter in "abcdefghij"]
    assert did_you_mean("?", names[:9]) == "; there are " + ", ".join(names[:9])
    assert did_you_mean("?", names) == ""


def test_no_names_give_no_advice() -> None:
    assert did_you_mean("x", []) == ""


def test_a_recipe_error_counts_its_problems() -> None:
    assert str(RecipeError("r.toml", ["a: b"])) == "r.toml: 1 problem\n  a: b"
    assert str(RecipeError("r.toml", ["a: b", "c: d"])) == "r.toml: 2 problems\n  a: b\n  c: d"


def test_a_recipe_error_keeps_place_and_problems_apart() -> None:
    error = RecipeError("r.toml", ["a", "b"])
    assert (error.where, error.problems) == ("r.toml", ("a", "b"))


def test_only_a_wrong_recipe_ends_with_2() -> None:
    assert (PdtrimError.exit_code, PlanError.exit_code, PluginError.exit_code, RecipeError.exit_code) == (1, 1, 1, 2)


def test_blame_names_the_plugin_and_keeps_the_cause() -> None:
    cause = ZeroDivisionError("division by zero")
    with pytest.raises(PluginError) as caught, blame("scorer 'norm-ratio' (pdtrim-norm 0.1.0)"):
        raise cause
    assert str(caught.value) == "scorer 'norm-ratio' (pdtrim-norm 0.1.0) failed: ZeroDivisionError: division by zero"
    assert caught.value.__cause__ is cause


@pytest.mark.parametrize("error", [PdtrimError("mine"), RecipeError("r", ["x"])])
def test_blame_passes_on_what_users_can_mend_themselves(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, blame("scorer 'x'"):
        raise error
    assert caught.value is error


def test_blame_names_the_plugin_whose_file_is_gone() -> None:
    with pytest.raises(PluginError) as caught, blame("exporter 'x' (elsewhere 1.0)"):
        raise OSError(28, "No space left on device")
    assert str(caught.value) == "exporter 'x' (elsewhere 1.0) failed: OSError: [Errno 28] No space left on device"


def test_blame_lets_an_interrupt_through() -> None:
    with pytest.raises(KeyboardInterrupt), blame("scorer 'x'"):
        raise KeyboardInterrupt
