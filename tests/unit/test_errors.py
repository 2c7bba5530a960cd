"""Errors say what is wrong, where, and what to do."""

from __future__ import annotations

import pytest

from pdtrim_core.errors import PdtrimError, PlanError, PluginError, RecipeError, blame, did_you_mean, reason_of


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


def test_a_reason_is_the_whole_text_on_one_line() -> None:
    error = RuntimeError("Error(s) in loading state_dict for Llama:\n\tsize mismatch for norm.weight:\r\n  [3] is not [4]")
    assert reason_of(error) == "Error(s) in loading state_dict for Llama: size mismatch for norm.weight: [3] is not [4]"


@pytest.mark.parametrize(
    "text",
    ["\x1b[1m\x1b[31mno such file\x1b[0m", "no \x00such\x07 file", "\x1b]0;title\x07no such file", "\x1b[2Kno\x1b[1G such file"],
)
def test_a_reason_says_nothing_that_only_a_terminal_understands(text: str) -> None:
    assert reason_of(ValueError(text)) == "no such file"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (AssertionError(), "AssertionError"),
        (RuntimeError("\n"), "RuntimeError"),
        (KeyError("lm_head"), "KeyError: 'lm_head'"),
        (KeyError("two words"), "KeyError: 'two words'"),
        (StopIteration(7), "StopIteration: 7"),
        (IndexError("list index out of range"), "list index out of range"),
    ],
)
def test_the_class_of_an_error_is_said_where_its_text_says_little(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def because(error: Exception, cause: Exception | None) -> Exception:
    """Return an error as `raise error from cause` makes it."""
    error.__cause__ = cause
    return error


def test_a_reason_tells_the_cause_where_that_adds_something() -> None:
    error = because(OSError("Can't load the tokenizer"), because(ValueError("bad tokenizer.json"), KeyError("vocab")))
    assert reason_of(error) == "Can't load the tokenizer (because: bad tokenizer.json) (because: KeyError: 'vocab')"


def test_a_reason_does_not_tell_a_cause_twice_or_one_that_was_hidden() -> None:
    assert reason_of(because(ValueError("cannot read: disk is full"), OSError("disk is full"))) == "cannot read: disk is full"
    hidden = because(ValueError("cannot read it"), None)
    hidden.__context__ = OSError("disk is full")
    assert reason_of(hidden) == "cannot read it"


def test_what_an_error_met_while_it_was_handled_is_told_too() -> None:
    error = ValueError("cannot read it")
    error.__context__ = OSError("disk is full")
    assert reason_of(error) == "cannot read it (because: disk is full)"


def test_causes_that_go_round_in_a_circle_end() -> None:
    one, two = ValueError("one of them"), ValueError("the other")
    one.__cause__, two.__cause__ = two, one
    assert reason_of(one) == "one of them (because: the other)"


def test_a_long_reason_keeps_both_ends() -> None:
    reason = reason_of(RuntimeError(f"begins here {'x' * 5000} ends here"))
    assert reason.startswith("begins here")
    assert reason.endswith("ends here")
    assert len(reason) <= 500


def test_blame_says_what_lay_behind() -> None:
    with pytest.raises(PluginError) as caught, blame("scorer 'x'"):
        raise because(ValueError("\x1b[31mno\nscores"), KeyError("logits"))
    assert str(caught.value) == "scorer 'x' failed: ValueError: no scores (because: KeyError: 'logits')"
