"""What plans share changes no number: kept streams, rows for all choices, tokens that choices begin with; none does a plan."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, Item, Plan, Removal
from pdtrim_core.execution.batching import RowLayout
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline import pipeline
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from tests.unit.execution.test_staged_model import PLANS, TAILS, replacements, some_items

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

CLOSE = 1e-4
"""Nats a choice: rounding of float32 where other tokens lie in between; a wrong mask or position gives tenths."""
WALK = [Plan.unified(Removal(map(Drop, blocks))) for blocks in ((2, 4), (2, 5), (1, 2), (2, 4), (1, 2), (0, 2), (2, 5), (3, 5))]


def forked_items() -> list[Item]:
    """Choices that begin with the same tokens; one is the beginning of another, two are the same."""
    choices = [((7, 8, 9, 10), (7, 8, 11), (7, 8), (5, 8, 9)), ((3, 4, 5), (3, 4, 5)), ((1,), (1, 2, 3))]
    return [
        Item((tuple(range(20, 24 + number)),), own, 0, (1,) * len(own), f"fork {number}") for number, own in enumerate(choices)
    ]


def blocks_run(model: BlockModel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list to which each block that runs from now on adds its number."""
    ran: list[int] = []
    run = type(model).run

    def noted(self: BlockModel, index: int, *args: Any) -> torch.Tensor:
        ran.append(index)
        return run(self, index, *args)

    monkeypatch.setattr(type(model), "run", noted)
    return ran


def test_beginning_where_earlier_plans_part_changes_no_bit() -> None:
    model, items = tiny_llama(), some_items()
    modules = replacements(model)
    plans = [*WALK, *PLANS.values(), *TAILS.values(), *WALK]
    prefix_caches = [
        PrefixCache(model, ExecutionOptions(batch_tokens=64, packed=True, reuse_plans=reuse)) for reuse in (True, False)
    ]
    for plan in plans:
        kept, anew = (StagedModel(prefix_cache, plan, modules).loglikelihoods(items) for prefix_cache in prefix_caches)
        assert kept == anew


def test_a_plan_begins_where_it_first_differs_from_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_llama(), some_items()[:1]
    prefix_cache = PrefixCache(model)
    StagedModel(prefix_cache, Plan.unified(Removal([Drop(1), Drop(4)]))).loglikelihoods(items)
    ran = blocks_run(model, monkeypatch)
    StagedModel(prefix_cache, Plan.unified(Removal([Drop(1), Drop(5)]))).loglikelihoods(items)
    assert ran == [4]
    ran.clear()
    StagedModel(prefix_cache, Plan(decode=Removal([Drop(1)]))).loglikelihoods(items)
    assert 2 in ran, "decode alone loses block 1, so nothing behind it is shared"


def test_without_reuse_a_plan_begins_at_its_first_element(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_llama(), some_items()[:1]
    prefix_cache = PrefixCache(model, ExecutionOptions(reuse_plans=False))
    StagedModel(prefix_cache, Plan.unified(Removal([Drop(1), Drop(4)]))).loglikelihoods(items)
    ran = blocks_run(model, monkeypatch)
    StagedModel(prefix_cache, Plan.unified(Removal([Drop(1), Drop(5)]))).loglikelihoods(items)
    assert ran == [2, 3, 4]


@pytest.mark.parametrize("streams", [0, 2, 7, 9, 30])
def test_kept_streams_stay_within_the_budget(streams: int) -> None:
    model, items = tiny_llama(), some_items()[:1]
    one = PrefixCache(model).batches(items)[0][1].recording.hidden_BTD.nbytes
    prefix_cache = PrefixCache(model, ExecutionOptions(budget=streams * one))
    expected = [StagedModel(PrefixCache(model), plan).loglikelihoods(items) for plan in WALK]
    assert [StagedModel(prefix_cache, plan).loglikelihoods(items) for plan in WALK] == expected
    ((_, prepared),) = prefix_cache.batches(items)
    kept = [*prefix_cache.of_plans._kept.values(), *(stream for depth, stream in prepared._dense.items() if depth)]
    assert sum(stream.nbytes for stream in kept) <= streams * one
    assert bool(prefix_cache.of_plans._kept) == (streams > model.block_count)


def test_by_default_no_more_is_kept_than_the_dense_model_and_two_plans_have() -> None:
    model, items = tiny_llama(), some_items()
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    roomy = PrefixCache(model, ExecutionOptions(batch_tokens=64, budget=2**30))
    streams = sum(prepared.recording.hidden_BTD.nbytes for _, prepared in prefix_cache.batches(items))
    for plan in [*WALK, *PLANS.values(), *TAILS.values()]:
        same = [StagedModel(of, plan, replacements(model)).loglikelihoods(items) for of in (prefix_cache, roomy)]
        assert same[0] == same[1]
    assert prefix_cache.most_bytes == 3 * model.block_count * streams
    assert streams * model.block_count < prefix_cache.kept_bytes <= prefix_cache.most_bytes < roomy.kept_bytes


def test_by_default_a_quarter_of_the_free_memory_is_never_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    model, items = tiny_llama(), some_items()
    one = PrefixCache(model).batches(items)[0][1].recording.hidden_BTD.nbytes
    for streams in (0, 3, model.block_count, 2 * model.block_count):
        monkeypatch.setattr("pdtrim_core.execution.prefix_cache.free_memory", lambda _, free=4 * streams * one: free)
        prefix_cache = PrefixCache(model)
        for plan in WALK:
            StagedModel(prefix_cache, plan).loglikelihoods(items)
        assert prefix_cache.kept_bytes <= prefix_cache.most_bytes <= streams * one


def test_what_is_kept_is_freed_as_soon_as_the_prefix_cache_is_let_go_of() -> None:
    """Not at the next collection of garbage: a sweep makes one after the other, each with room for a quarter of what is free."""
    model, items = tiny_llama(), some_items()
    prefix_cache = PrefixCache(model)
    StagedModel(prefix_cache, WALK[0]).divergences(items)
    kept = [weakref.ref(stream) for stream in prefix_cache.of_plans._kept.values()]
    kept += [weakref.ref(stream) for _, prepared in prefix_cache.batches(items) for stream in prepared._dense.values()]
    assert len(kept) > len(prefix_cache.of_plans._kept) > 0
    gc.disable()
    try:
        del prefix_cache
        assert [ref() for ref in kept] == [None] * len(kept)
    finally:
        gc.enable()


def test_halving_the_batches_forgets_the_streams_of_plans() -> None:
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(batch_tokens=64))
    before = StagedModel(prefix_cache, WALK[0]).loglikelihoods(some_items())
    prefix_cache.halve_batches()
    assert not prefix_cache.of_plans._kept
    after = StagedModel(prefix_cache, WALK[0]).loglikelihoods(some_items())
    assert [sum(sums) for sums in after] == pytest.approx([sum(sums) for sums in before], abs=CLOSE)


def test_tokens_that_choices_begin_with_are_run_once() -> None:
    def layout(*, shared: bool) -> list[int]:
        batch = RowLayout(row_tokens=64, share_tokens=shared).batch(forked_items()[:1], torch.device("cpu"))
        return [*batch.rows.ids_BT[0, 4:].tolist(), len(batch.at_row)]

    # Of four choices all but the last token is run: 7 8 9, 7 8, 7 and 5 8.
    assert layout(shared=False) == [7, 8, 9, 7, 8, 7, 5, 8, 9]
    assert layout(shared=True) == [7, 8, 9, 5, 8, 6]


@pytest.mark.parametrize("family", FAMILIES)
def test_sharing_tokens_changes_a_choice_by_rounding_alone(family: str) -> None:
    model = tiny_model(family)
    items = [*forked_items(), *some_items()]
    apart, shared = (
        [
            StagedModel(
                PrefixCache(model, ExecutionOptions(batch_tokens=128, packed=True, shared_tokens=shared)), plan
            ).loglikelihoods(items)
            for plan in (Plan(), PLANS["decode-only drop"], PLANS["part of the drops in prefill"])
        ]
        for shared in (False, True)
    )
    for one, other in zip(apart, shared, strict=True):
        for sums, same in zip(one, other, strict=True):
            assert sums == pytest.approx(same, abs=CLOSE)


def run_with(folder: Path, evaluation: dict[str, Any]) -> tuple[Any, dict[str, float]]:
    """Run a small recipe with some switches; return its plan and the points of its rows."""
    host = tiny_host()
    data = {
        "model": {"path": TINY},
        "objective": "margin",
        "calibration": {"samples": 8},
        "recovery": "none",
        "prune": {"blocks": 2, "merges": False},
        "searcher": {"t0": 5.0, "alpha": 0.6},
        "evaluation": {"batch_tokens": 256, "fidelity": False, **evaluation},
    }
    outcome = pipeline.run(Recipe.from_data(data, where="recipe.toml", out=folder, host=host), host)
    return outcome.saved_plan, {row.name: row.calibration.score for row in outcome.rows}


SWITCHES: list[Any] = [
    {"reuse_plans": False},
    {"share_tokens": False},
    {"pack_rows": False},
    {"early_stop": False},
    {"cache_budget": 0},
]


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, dict[str, float]]:
    return run_with(tmp_path_factory.mktemp("usual"), {})


@pytest.mark.parametrize("switch", SWITCHES)
def test_a_switch_changes_neither_the_plan_nor_its_points(
    tmp_path: Path, usual: tuple[Any, dict[str, float]], switch: dict[str, Any]
) -> None:
    plan, score = usual
    other_plan, other_points = run_with(tmp_path / "other", switch)
    assert plan == other_plan
    # Points of the margin are percent of a probability; rounding is far below a hundredth.
    assert score == pytest.approx(other_points, abs=0.01)
