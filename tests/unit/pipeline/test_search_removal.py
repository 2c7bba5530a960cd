"""A search finds what decode loses, over merges that are trained before it or after; those that are no better than a drop go."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from random import Random
from typing import Any

import pytest

from pdtrim_core import Drop, Merge, Plan, Removal
from pdtrim_core.api import Request, Result, Searcher, SearchSpace
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.pipeline.search_removal import SearchedRemoval, search_removal
from pdtrim_core.results.run_folder import measured_in
from tests.unit.pipeline.runs import DATA, Begin

MANY = {"blocks": 3, "merge_threshold": {"quantile": 0.2}}
LEAVE = "merges that are no better than a drop leave the search: "


class MergesOne(Searcher):
    """Asks for plans with one merge each, or for the first plan where nothing can be merged."""

    name = "merges-one"

    def search(self, space: SearchSpace, rng: Random) -> Generator[Request, Result, None]:
        merges = [element for element in space.elements if isinstance(element, Merge)]
        for merge in merges:
            drops = [element for element in space.elements if isinstance(element, Drop)]
            yield Plan.unified(Removal([merge, *drops[: space.count - 1]]))
        if not merges:
            yield Plan.unified(space.first)


def searched(
    begin: Begin, *, prune: dict[str, Any] = MANY, name: str = "run", search: dict[str, Any] | None = None, **distiller: Any
) -> tuple[SearchedRemoval, RunContext]:
    """Return what a search found, and the context that it had."""
    context = begin(name, prune=prune, search=search or {}, distiller={**DATA["distiller"], **distiller})
    context = replace(context, recipe=replace(context.recipe, searcher=MergesOne()))
    return search_removal(context, prepare(context)), context


def merges_of(plan: Plan) -> set[Merge]:
    return {element for element in plan.decode if isinstance(element, Merge)}


@pytest.mark.parametrize("train", ["before-search", "after-search"])
def test_what_is_found_fits_the_budget_and_its_merges_are_trained(begin: Begin, train: str) -> None:
    found, _ = searched(begin, train=train, lr=1e-3)
    assert found.plan.decode.blocks_removed == 3
    assert found.plan == Plan.unified(found.plan.decode)
    assert found.costs.block_count == 6
    results = {result.pair: result for result in found.merge_results(found.plan)}
    for merge in merges_of(found.plan):
        assert (results[merge.blocks].kept, results[merge.blocks].chosen) == (True, True)
        assert merge in found.modules
    assert found.bench.ledger.known(Plan()) is not None
    assert found.replaced is None


def test_training_after_the_search_trains_no_more_than_was_chosen(begin: Begin) -> None:
    found, _ = searched(begin, train="after-search", lr=1e-3)
    assert {result.pair for result in found.merge_results(found.plan)} == {merge.blocks for merge in merges_of(found.plan)}
    assert merges_of(found.plan)
    assert set(found.modules) == merges_of(found.plan)


def test_merges_that_are_worse_than_a_drop_are_searched_for_again_without_them(begin: Begin) -> None:
    found, context = searched(begin, train="after-search", lr=3.0)
    bad = {pair for note in context.events.notes if note.startswith(LEAVE) for pair in note.removeprefix(LEAVE).split(", ")}
    assert bad
    assert not bad & {str(merge) for merge in merges_of(found.plan)}
    assert found.plan.decode.blocks_removed == 3
    assert found.merge_results(found.plan)
    assert not any(result.kept for result in found.merge_results(found.plan))


@pytest.mark.parametrize("lr", [1e-3, 3.0])
def test_what_the_search_measured_untrained_has_a_part_of_its_own_in_the_journal(begin: Begin, lr: float) -> None:
    found, context = searched(begin, train="after-search", lr=lr, search={"mode": "exact"})
    measured = measured_in(context.folder.path)
    assert set(measured) == {"untrained", "calibration"}
    # Where every merge was no better than a drop, the last search was over drops, of which nothing waits for training.
    assert set(measured["calibration"]) == ({Plan()} if lr < 1 else {Plan(), found.plan})


def test_the_two_sets_are_told_with_the_threshold(begin: Begin) -> None:
    found, _ = searched(begin, train="after-search", lr=1e-3)
    assert found.sets.threshold is not None
    assert all(found.scores.pair[first] >= found.sets.threshold for first, _ in found.sets.pairs)
    assert {*found.sets.drops, *(block for pair in found.sets.pairs for block in pair)} == set(range(6))


def test_without_merges_there_is_no_threshold_and_nothing_to_save(begin: Begin, tmp_path: Any) -> None:
    found, context = searched(begin, prune={"blocks": 3, "merges": False})
    assert (found.sets.pairs, found.sets.threshold, found.modules, found.merge_results(found.plan)) == ((), None, {}, ())
    assert context.events.notes == []
    found.save(found.plan, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()


def test_scores_and_the_training_tokens_are_written_before_the_search_ends(begin: Begin) -> None:
    context = begin(prune=MANY)
    found = search_removal(context, prepare(context))
    assert (context.folder.path / "scores.json").read_text() == found.scores.to_json()
    environment = json.loads((context.folder.path / "environment.json").read_text())
    assert environment["training"] == found.environment.training != ""


def test_the_same_recipe_finds_the_same_again(begin: Begin) -> None:
    (one, _), (other, _) = (searched(begin, name=name, lr=1e-3) for name in "ab")
    assert (one.plan, one.sets, one.scores) == (other.plan, other.sets, other.scores)
    assert one.merge_results(one.plan) == other.merge_results(other.plan)
