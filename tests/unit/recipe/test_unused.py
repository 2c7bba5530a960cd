"""Keys that have no effect are told; keys that have one, and resolved recipes, are not."""

from __future__ import annotations

from typing import Any

import pytest

from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host

DATA: dict[str, Any] = {"model": {"path": "tiny:llama"}, "prune": {"blocks": 2}}
UNUSED: dict[str, dict[str, Any]] = {
    "search.finalists": {"pruner": "shortgpt", "search": {"finalists": 2}},
    "search.mode": {"pruner": "sleb", "search": {"mode": "exact"}},
    "search.minutes": {"pruner": "sleb", "search": {"minutes": 3.0}},
    "search.error": {"search": {"mode": "exact", "error": 0.2}},
    "search.recovered_tokens": {"search": {"recovered_tokens": 9}},
    "search.fresh": {"search": {"finalists": 1, "caution": 0.0, "fresh": 5}},
    "prune.merge_threshold": {"prune": {"blocks": 2, "merges": False, "merge_threshold": 0.9}},
    "distiller": {"prune": {"blocks": 2, "merges": False}, "distiller": {"use": "mse", "lr": 0.5}},
    "recovery_data.prompt_tokens": {"recovery": "none", "recovery_data": {"prompt_tokens": 9}},
    "evaluation.answer_tokens": {"evaluation": {"fidelity": False, "answer_tokens": 9}},
    "evaluation.own_answers": {"evaluation": {"fidelity": False, "own_answers": 9}},
    "evaluation.truncate_prefill": {"evaluation": {"first_token": "prefill", "truncate_prefill": False}},
    "evaluation.share_tokens": {"evaluation": {"pack_rows": False, "share_tokens": False}},
}
USED: list[dict[str, Any]] = [
    {},
    {"search": {"error": 0.2, "finalists": 2, "fresh": 5, "minutes": 3.0}},
    {"search": {"mode": "exact", "finalists": 3, "fresh": 5}},
    {"search": {"mode": "exact", "fresh": 0}},
    {"prune": {"blocks": 2, "merge_threshold": 0.9}, "distiller": {"use": "mse", "lr": 0.5}},
    {"pruner": "streamline", "distiller": {"use": "mse", "lr": 0.5}},
    {"search": {"recovered": True, "recovered_tokens": 9}},
    {"recovery": "fold", "recovery_data": {"prompt_tokens": 9}},
    {"evaluation": {"answer_tokens": 9, "own_answers": 3, "truncate_prefill": False, "share_tokens": False}},
]


def made(data: dict[str, Any]) -> Recipe:
    return Recipe.from_data({**DATA, **data}, where="x.toml", host=tiny_host())


@pytest.mark.parametrize("key", UNUSED)
def test_a_key_without_an_effect_is_told_with_the_reason(key: str) -> None:
    (line,) = made(UNUSED[key]).unused
    assert line.startswith(f"{key} has no effect: ")


@pytest.mark.parametrize("data", USED)
def test_a_key_with_an_effect_is_not_told(data: dict[str, Any]) -> None:
    assert made(data).unused == ()


@pytest.mark.parametrize(
    "data", [{"pruner": "shortgpt"}, {"prune": {"blocks": 2, "merges": False}}, {"search": {"mode": "exact"}}]
)
def test_a_resolved_recipe_spells_out_much_and_is_told_of_nothing(data: dict[str, Any]) -> None:
    resolved = made(data).to_data()
    assert "recovery_data" in resolved
    assert Recipe.from_data(resolved, where="x.toml", host=tiny_host()).unused == ()
