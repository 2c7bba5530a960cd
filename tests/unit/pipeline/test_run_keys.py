"""Keys of what runs share: each names what a thing is made from, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, KvOnly, Merge, Plan, Recipe, Removal
from pdtrim_core.pipeline.run_keys import keys_of, values_keys
from pdtrim_core.testing.contracts.small_run import tiny_host

HOST = tiny_host()
DATA: dict[str, Any] = {
    "model": {"path": "tiny:llama"},
    "recovery": "none",
    "prune": {"blocks": 2, "merges": False},
    "calibration": {"samples": 8, "held_out": 4},
    "searcher": {"use": "annealing", "t_min": 5.0},
    "objective": "margin",
    "evaluation": {"threads": 1},
}


def recipe(out: Path = Path("r"), **changes: Any) -> Recipe:
    return Recipe.from_data({**DATA, **changes}, where="r.toml", out=out, host=HOST)


CHANGES: list[tuple[dict[str, Any], set[str]]] = [
    ({"model": {"path": "tiny:opt"}}, {"model", "calibration", "scores", "prefix_cache"}),
    ({"model": {"path": "tiny:llama", "dtype": "bfloat16"}}, {"model", "calibration", "scores", "prefix_cache"}),
    ({"seed": 1}, {"calibration", "scores", "prefix_cache"}),
    ({"calibration": {"samples": 9}}, {"calibration", "scores", "prefix_cache"}),
    ({"scorer": "dot"}, {"scores"}),
    ({"evaluation": {"threads": 1, "batch_tokens": 64}}, {"scores", "prefix_cache"}),
    ({"evaluation": {"threads": 1, "first_token": "prefill"}}, {"prefix_cache"}),
    ({"evaluation": {"threads": 1, "pack_rows": False}}, {"prefix_cache"}),
    ({"evaluation": {"threads": 1, "compile": True}}, {"prefix_cache"}),
    ({"evaluation": {"threads": 1, "truncate_prefill": False, "early_stop": False}}, set()),
    ({"evaluation": {"threads": 1, "fidelity": False, "answer_tokens": 8}}, set()),
    ({"searcher": "random", "splitter": "unified", "objective": "kl", "prune": {"blocks": 1}, "distiller": "cosine-loss"}, set()),
    ({"exporter": [], "report": []}, set()),
]


@pytest.mark.parametrize(("changes", "changed"), CHANGES)
def test_each_thing_depends_on_what_it_is_made_from_and_on_nothing_else(changes: dict[str, Any], changed: set[str]) -> None:
    before, after = vars(keys_of(recipe())), vars(keys_of(recipe(**changes)))
    assert {name for name in before if before[name] != after[name]} == changed


DROPS = Plan.unified(Removal([Drop(1)]))
MERGES = Plan.unified(Removal([Merge(1, 2)]))


@pytest.mark.parametrize(
    ("changes", "digests", "plans"),
    [
        ({}, {}, set()),
        ({"objective": "accuracy"}, {}, {DROPS, MERGES}),
        ({"seed": 1}, {}, {DROPS, MERGES}),
        ({"distiller": "cosine-loss"}, {}, {MERGES}),
        ({}, {"training": "other"}, {MERGES}),
        ({}, {"weights": "other"}, {DROPS, MERGES}),
        ({}, {"data": "other"}, {DROPS, MERGES}),
        ({"evaluation": {"threads": 1, "truncate_prefill": False, "early_stop": False}}, {}, set()),
        ({"evaluation": {"threads": 1, "fidelity": False, "answer_tokens": 8}}, {}, set()),
        ({"searcher": "random", "splitter": "unified", "prune": {"blocks": 1}, "scorer": "dot"}, {}, set()),
    ],
)
def test_values_are_shared_where_they_are_the_same(changes: dict[str, Any], digests: dict[str, str], plans: set[Plan]) -> None:
    given = {"weights": "w", "data": "d", "training": "t"}
    one, other = values_keys(recipe(), **given), values_keys(recipe(**changes), **{**given, **digests})
    assert {plan for plan in (DROPS, MERGES) if one(plan) != other(plan)} == plans


def test_a_merge_that_prefill_only_keeps_the_kv_of_counts_as_one() -> None:
    key = values_keys(recipe(), weights="w", data="d", training="t")
    assert key(Plan(prefill=Removal([KvOnly(1)]), decode=Removal([Merge(1, 2)]))) == key(MERGES)


def test_the_order_of_recipes_puts_those_that_share_most_beside_each_other() -> None:
    plain, scored, packed, other = (
        keys_of(recipe(**changes)).order
        for changes in (
            {},
            {"scorer": "dot"},
            {"evaluation": {"threads": 1, "pack_rows": False}},
            {"model": {"path": "tiny:opt"}},
        )
    )

    def shared(one: tuple[Any, ...], two: tuple[Any, ...]) -> int:
        return next((number for number, (a, b) in enumerate(zip(one, two, strict=True)) if a != b), len(one))

    assert [shared(plain, another) for another in (plain, scored, packed, other)] == [4, 3, 2, 0]


def test_a_key_begins_with_the_keys_of_what_its_thing_is_made_from() -> None:
    keys = keys_of(recipe())
    for longer, shorter in (
        (keys.calibration, keys.model),
        (keys.scores, keys.calibration),
        (keys.prefix_cache, keys.calibration),
    ):
        assert longer[: len(shorter)] == shorter
        assert len(longer) > len(shorter)
