"""What later steps ask of a removal, whoever found it: a search and a pruner answer alike."""

from __future__ import annotations

import inspect
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Plan
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.prune import PrunedRemoval, prune
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.pipeline.search_removal import SearchedRemoval, search_removal
from tests.unit.pipeline.runs import Begin

BUDGET: dict[str, Any] = {"blocks": 2, "merges": False}
METHODS = ("merge_results", "save")


def found_by_a_search(begin: Begin) -> SearchedRemoval:
    context = begin("searched", prune=BUDGET)
    return search_removal(context, prepare(context))


def found_by_a_pruner(begin: Begin) -> PrunedRemoval:
    context = begin("pruned", prune={"blocks": 2}, pruner="shortgpt", searcher=None, distiller=None)
    return prune(context, prepare(context))


def facts_of(found: FoundRemoval) -> dict[str, Any]:
    return {field.name: getattr(found, field.name) for field in fields(FoundRemoval)}


@pytest.mark.parametrize("missing", [*((name,) for name in METHODS), METHODS])
def test_a_removal_without_one_of_its_methods_cannot_be_made(begin: Begin, missing: tuple[str, ...]) -> None:
    partial = type("Partial", (FoundRemoval,), {name: lambda *_: () for name in METHODS if name not in missing})
    facts = facts_of(found_by_a_pruner(begin))
    # Versions of Python put the names of methods in quotes or not.
    with pytest.raises(TypeError, match="abstract methods? '?" + "'?, '?".join(missing) + "'?$"):
        partial(**facts)


def test_a_removal_with_its_methods_is_made_of_the_facts_alone(begin: Begin) -> None:
    facts = facts_of(found_by_a_pruner(begin))
    whole = type("Whole", (FoundRemoval,), {name: lambda *_: () for name in METHODS})
    assert facts_of(whole(**facts)) == facts


@pytest.mark.parametrize("implementation", [SearchedRemoval, PrunedRemoval])
def test_a_search_and_a_pruner_find_removals_with_the_same_methods(implementation: type[FoundRemoval]) -> None:
    assert issubclass(implementation, FoundRemoval)
    assert not inspect.isabstract(implementation)
    for name in METHODS:
        assert inspect.signature(getattr(implementation, name)) == inspect.signature(getattr(FoundRemoval, name))


@pytest.mark.parametrize("find", [found_by_a_search, found_by_a_pruner])
def test_whoever_finds_a_removal_it_starts_unified_within_the_budget_and_measured(
    begin: Begin, tmp_path: Path, find: Any
) -> None:
    found: FoundRemoval = find(begin)
    assert found.plan == Plan.unified(found.plan.decode)
    assert found.plan.decode.blocks_removed == 2
    assert found.costs.cost(found.plan, "decode") < found.costs.cost(Plan(), "decode") == 1
    assert found.bench.ledger.known(Plan()) is not None
    assert len(found.scores.block) == found.costs.block_count
    assert (found.merge_results(found.plan), found.replaced) == ((), None)
    found.save(found.plan, tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
