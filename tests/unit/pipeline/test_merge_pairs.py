"""Which pairs a search may merge: trained ones that are worth it, or those that are trained once it has chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Drop, Merge, Plan, PluginError, Removal
from pdtrim_core.api import Scores
from pdtrim_core.pipeline.merge_pairs import MergePairs
from pdtrim_core.pipeline.run_context import RunContext
from pdtrim_core.testing import tiny_llama
from tests.unit.pipeline.runs import DATA, Begin, inputs_of

HIGH = Scores((0.1, 0.2, 0.9, 0.5, 0.3, 0.4), (0.2, 0.97, 0.98, 0.3, 0.96), similarity=True)
LEAVE = "merges that are no better than a drop leave the search: "


def merging(begin: Begin, threshold: float = 0.95, **distiller: Any) -> tuple[MergePairs, RunContext]:
    context = begin(distiller={**DATA["distiller"], **distiller})
    return MergePairs(context, inputs_of(tiny_llama(silent={2})), HIGH, threshold), context


def test_every_block_stands_in_one_element_and_every_merge_has_its_module(begin: Begin) -> None:
    pairs, _ = merging(begin)
    choice = pairs.choose()
    assert {block for pair in choice.sets.pairs for block in pair.blocks} | set(choice.sets.drops) == set(range(6))
    assert set(choice.space.elements) == {*choice.sets.pairs, *map(Drop, choice.sets.drops)}
    assert set(choice.module_set.modules) == set(choice.sets.pairs) != set()
    assert (choice.module_set.trained, choice.module_set.digest) == (True, pairs.training.digest)


def test_merges_that_are_worse_than_a_drop_leave_the_search(begin: Begin) -> None:
    # So large a step ruins what it trains.
    pairs, context = merging(begin, lr=3.0)
    choice = pairs.choose()
    bad = [merge for merge, record in pairs.training.records.items() if not record.worthwhile]
    assert bad
    assert not set(bad) & set(choice.sets.pairs)
    said = [note.removeprefix(LEAVE) for note in context.events.notes if note.startswith(LEAVE)]
    assert sorted(", ".join(said).split(", ")) == sorted(map(str, bad))


@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_merges_that_trained_nothing_leave_the_search_for_a_reason_of_their_own(begin: Begin, kv: str) -> None:
    # A step that float32 rounds away.
    pairs, context = merging(begin, lr=1e-30, kv=kv)
    choice = pairs.choose()
    assert (choice.sets.pairs, choice.module_set.modules) == ((), {})
    assert pairs.training.records
    unmoved = "merges whose training changed no weight leave the search: "
    said = [note.removeprefix(unmoved) for note in context.events.notes if note.startswith(unmoved)]
    assert sorted(", ".join(said).split(", ")) == sorted(map(str, pairs.training.records))
    assert not any(note.startswith(LEAVE) for note in context.events.notes)


def test_a_pair_that_left_does_not_come_back(begin: Begin) -> None:
    pairs, _ = merging(begin, lr=3.0)
    assert pairs.choose().sets == pairs.choose().sets


def test_where_training_waits_for_the_search_the_blocks_it_starts_from_stand_for_the_pairs(begin: Begin) -> None:
    pairs, _ = merging(begin, train="after-search")
    choice = pairs.choose()
    assert not choice.module_set.trained
    assert not pairs.training.records
    model = pairs._inputs.model
    assert choice.module_set.modules == {merge: model.blocks[merge.keep] for merge in choice.sets.pairs}
    assert choice.module_set.modules


def test_only_merges_of_the_plan_are_trained_after_the_search(begin: Begin) -> None:
    pairs, _ = merging(begin, train="after-search", lr=1e-3, epochs=8)
    chosen = pairs.choose().sets.pairs[0]
    trained = pairs.train_chosen(Plan.unified(Removal([chosen, Drop(0)])))
    assert list(pairs.training.records) == [chosen]
    assert trained is not None
    assert trained.trained
    assert trained.modules == {chosen: pairs.training.modules[chosen]}


def test_a_chosen_merge_that_is_worse_than_a_drop_asks_for_other_sets(begin: Begin) -> None:
    pairs, context = merging(begin, train="after-search", lr=3.0)
    before = pairs.choose()
    bad = next(merge for merge in before.sets.pairs if 2 not in merge.blocks)
    assert pairs.train_chosen(Plan.unified(Removal([bad]))) is None
    assert context.events.notes[-1] == f"{LEAVE}{bad}"
    assert bad not in pairs.choose().sets.pairs


def test_a_plan_without_merges_has_nothing_to_train(begin: Begin) -> None:
    pairs, _ = merging(begin, train="after-search")
    pairs.choose()
    trained = pairs.train_chosen(Plan.unified(Removal([Drop(2)])))
    assert trained is not None
    assert (trained.modules, trained.trained) == ({}, True)


def test_a_threshold_that_no_pair_reaches_is_said(begin: Begin) -> None:
    pairs, context = merging(begin, 0.9999)
    choice = pairs.choose()
    assert (choice.sets.pairs, choice.module_set.modules, choice.module_set.trained) == ((), {}, True)
    assert context.events.notes == [
        "no pair is worth merging at prune.merge_threshold = 0.9999: every block is searched as a drop"
    ]
    assert pairs.training.digest == ""


@pytest.mark.parametrize("train", ["before-search", "after-search"])
def test_with_merging_off_nothing_is_said_and_nothing_trained(begin: Begin, tmp_path: Path, train: str) -> None:
    pairs, context = merging(begin, 1.1, train=train)
    choice = pairs.choose()
    assert (choice.sets.pairs, choice.module_set.trained) == ((), True)
    assert context.events.notes == []
    assert not (tmp_path / "cache").exists()


def test_results_tell_which_merges_could_be_chosen_and_which_were(begin: Begin) -> None:
    pairs, _ = merging(begin, lr=1e-3, epochs=8)
    choice = pairs.choose()
    chosen = choice.sets.pairs[0]
    results = pairs.results(Plan.unified(Removal([chosen])), choice.module_set.modules)
    assert [result.pair for result in results] == sorted(merge.blocks for merge in pairs.training.records)
    assert {result.pair for result in results if result.kept} == {merge.blocks for merge in choice.sets.pairs}
    assert [result.pair for result in results if result.chosen] == [chosen.blocks]
    assert all(result.score == HIGH.pair[result.pair[0]] for result in results)


def test_frozen_merges_keep_the_first_block_of_a_pair(begin: Begin) -> None:
    pairs, _ = merging(begin, kv="frozen", train="after-search")
    merges = pairs.choose().sets.pairs
    assert merges
    assert all(merge == Merge(merge.blocks[0], merge.blocks[-1], "frozen") for merge in merges)


@pytest.mark.parametrize("plan", [7, "x\ny" * 3000, Plan(), Removal([Drop(1)])], ids=["number", "text", "plan", "removal"])
def test_what_is_no_plan_for_a_removal_is_told_in_one_short_line(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, plan: Any
) -> None:
    pairs, context = merging(begin)
    monkeypatch.setattr(type(context.recipe.splitter), "plan_for", lambda _self, _decode, _costs: plan)
    space = pairs.choose().space
    with pytest.raises(PluginError, match="it must return a plan with this decode, or None") as caught:
        space.plan_of(Removal([Drop(1)]))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600
