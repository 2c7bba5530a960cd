"""Keys of a recipe that are no components: bounds, the two sorts of threshold, and when prefill may leave out its tail."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.recipe.settings import Evaluation, Prune, Quantile, Settings
from pdtrim_core.recipe.validation import checked


def settings_of(**keys: Any) -> Settings:
    problems: list[str] = []
    settings = checked(Settings, keys, "", problems)
    assert settings is not None, problems
    return settings


def problem_of(**keys: Any) -> str:
    problems: list[str] = []
    assert checked(Settings, keys, "", problems) is None
    (problem,) = problems
    return problem


def test_a_recipe_that_says_nothing_has_the_defaults_and_they_are_lawful() -> None:
    assert settings_of() == Settings()
    assert settings_of(**Settings().model_dump()) == Settings()


@pytest.mark.parametrize(
    ("table", "key", "lowest", "problem"),
    [
        ("prune", "blocks", 0, "greater than or equal to 0"),
        ("evaluation", "batch_tokens", 1, "greater than 0"),
        ("evaluation", "cache_budget", 0, "greater than or equal to 0"),
        ("evaluation", "threads", 1, "greater than 0"),
        ("evaluation", "answer_tokens", 1, "greater than 0"),
    ],
)
def test_counts_have_a_lowest_value(table: str, key: str, lowest: int, problem: str) -> None:
    assert getattr(getattr(settings_of(**{table: {key: lowest}}), table), key) == lowest
    below = lowest - 1
    assert problem_of(**{table: {key: below}}) == f"{table}.{key}: must be {problem} (got {below})"


@pytest.mark.parametrize(
    ("prune", "problem"),
    [
        ({"fraction": 1}, "prune.fraction: must be less than 1 (got 1)"),
        ({"fraction": -0.5}, "prune.fraction: must be greater than or equal to 0 (got -0.5)"),
        ({"merge_threshold": "0.9"}, "prune.merge_threshold: must be a valid number (got '0.9')"),
        ({"merge_threshold": True}, "prune.merge_threshold: must be a valid number (got True)"),
        ({"merge_threshold": {"quantile": 1.5}}, "prune.merge_threshold.quantile: must be less than or equal to 1 (got 1.5)"),
        (
            {"merge_threshold": {"quantle": 0.5, "quantile": 0.5}},
            "prune.merge_threshold.quantle: unknown key; did you mean 'quantile'?",
        ),
    ],
)
def test_shares_and_thresholds_get_one_sentence_about_the_sort_that_was_meant(prune: dict[str, Any], problem: str) -> None:
    assert problem_of(prune=prune) == problem


@pytest.mark.parametrize(("given", "expected"), [(0.95, 0.95), (1, 1.0), (-2.5, -2.5), ({"quantile": 0}, Quantile(quantile=0))])
def test_a_threshold_is_a_number_or_a_quantile(given: Any, expected: float | Quantile) -> None:
    assert settings_of(prune={"merge_threshold": given}).prune.merge_threshold == expected
    assert Prune(merge_threshold=expected).merge_threshold == expected


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_not_finite_are_refused(number: float) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        Prune(merge_threshold=number)


@pytest.mark.parametrize("first_token", get_args(FirstToken))
@pytest.mark.parametrize("truncate", [False, True])
def test_the_tail_of_prefill_goes_only_where_decode_makes_the_first_token(first_token: Any, truncate: bool) -> None:
    evaluation = Evaluation(first_token=first_token, truncate_prefill=truncate)
    assert evaluation.truncates_prefill is (first_token == "decode" and truncate)


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"recipe": 2}, "recipe: must be less than or equal to 1 (got 2)"),
        ({"seed": -1}, "seed: must be greater than or equal to 0 (got -1)"),
        ({"evaluation": {"first_token": "both"}}, "evaluation.first_token: must be 'decode' or 'prefill' (got 'both')"),
        ({"evaluation": {"truncate_prefill": "cut"}}, "evaluation.truncate_prefill: must be a valid boolean (got 'cut')"),
        ({"evaluation": {"fidelity": "no"}}, "evaluation.fidelity: must be a valid boolean (got 'no')"),
        ({"evaluation": {"answer_tokens": 4097}}, "evaluation.answer_tokens: must be less than or equal to 4096 (got 4097)"),
        ({"plugins": "one.py"}, "plugins: must be a valid array (got 'one.py')"),
    ],
)
def test_other_keys_say_what_they_take(keys: dict[str, Any], problem: str) -> None:
    assert problem_of(**keys) == problem


def test_settings_cannot_be_changed() -> None:
    settings = settings_of(prune={"blocks": 2})
    for model, key in ((settings, "seed"), (settings.prune, "blocks"), (settings.evaluation, "threads")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(model, key, 1)


@pytest.mark.parametrize(
    ("keys", "finalists", "fresh", "caution", "under_splitter"),
    [
        ({}, 4, 32, 2.0, True),
        ({"mode": "exact"}, 1, 0, 0.0, False),
        ({"mode": "exact", "finalists": 3, "fresh": 5, "caution": 1.0, "prefill": "splitter"}, 3, 5, 1.0, True),
        ({"finalists": 1, "fresh": 0, "caution": 0.0, "prefill": "decode"}, 1, 0, 0.0, False),
    ],
)
def test_a_search_that_says_nothing_has_what_suits_its_mode(
    keys: dict[str, Any], finalists: int, fresh: int, caution: float, under_splitter: bool
) -> None:
    search = settings_of(search=keys).search
    found = (search.finalists_wanted, search.fresh_wanted(64), search.caution_wanted, search.under_splitter)
    assert found == (finalists, fresh, caution, under_splitter)


def test_a_search_cannot_be_wrong_for_certain() -> None:
    assert problem_of(search={"error": 0}).startswith("search.error: must be greater than 0")
    assert problem_of(search={"mode": "pared"}).startswith("search.mode: must be 'paired' or 'exact'")
