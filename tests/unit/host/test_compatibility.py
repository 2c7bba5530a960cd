"""What a plugin is told whose hooks, arguments or methods are not those of this version."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PluginHost, hookimpl
from pdtrim_core.api import CostModel, Objective, Plan, Scorer, StageSplitter
from pdtrim_core.host.compatibility import CHANGES, hook_names, problem_with_hook
from pdtrim_core.host.host import Origin
from tests.unit.host.third_parties import Load, told

NEWER = {
    "pdtrim_layers": "is pdtrim_find_blocks since 0.2",
    "pdtrim_note_made.text": "is called note since 0.2",
    "Scorer.rank": "is score since 0.2, and gives Scores",
    "Searcher.search": "has rng since 0.2",
}


def test_hooks_of_an_older_version_are_told_what_changed(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.host.compatibility.CHANGES", NEWER)
    refused = "Seedless.search cannot be called as search(space, rng): too many positional arguments"
    assert told(load("old", "wrong_arguments")) == [
        (
            "broken-arguments 1.0",
            f"{refused}; Searcher.search has rng since 0.2",
        ),
        ("broken-old 1.0", "the hook pdtrim_layers is pdtrim_find_blocks since 0.2"),
        ("broken-old 1.0", "the hook pdtrim_note_made has no argument 'text': it is called note since 0.2"),
    ]


def test_methods_of_an_older_version_are_told_what_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.host.compatibility.CHANGES", NEWER)

    class Ranker(Scorer):
        """Made for another version."""

        name = "ranker"

        def rank(self, context: Any) -> list[int]:
            return list(range(context.block_count))

    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_scorers=hookimpl(lambda: [Ranker])), Origin("parts", "old", "1.0"))
    assert told(host) == [("old 1.0", "Ranker does not define score: Scorer.rank is score since 0.2, and gives Scores")]


def test_what_changed_names_nothing_that_there_still_is() -> None:
    assert not set(CHANGES) & set(hook_names())


def test_methods_may_be_static_or_take_more() -> None:
    class Relaxed(Scorer):
        """Takes what comes."""

        name = "relaxed"

        @staticmethod
        def score(context: Any, more: int = 0) -> Any:
            return (context, more)

    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_scorers=hookimpl(lambda: [Relaxed])), Origin("parts", "lax"))
    assert host.failures == []


@pytest.mark.parametrize("arguments", [(), ("merge",), ("untrained", "merge")])
def test_a_hook_may_take_some_of_its_arguments_in_any_order(arguments: tuple[str, ...]) -> None:
    assert problem_with_hook("pdtrim_merge_trained", arguments) is None


def test_an_argument_is_refused_that_the_hook_has_not() -> None:
    assert (
        problem_with_hook("pdtrim_run_ended", ["out"]) == "the hook pdtrim_run_ended has no argument 'out'; it takes no arguments"
    )
    assert problem_with_hook("pdtrim_note_made", ["nota"]) == (
        "the hook pdtrim_note_made has no argument 'nota'; did you mean 'note'?"
    )


def test_an_argument_with_a_default_is_no_argument_of_the_hook() -> None:
    def pdtrim_note_made(note: str, heard: list[str] | None = None) -> None:
        raise AssertionError(note)

    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_note_made=hookimpl(pdtrim_note_made)), Origin("parts", "own"))
    assert host.failures == []


def test_a_splitter_of_0_1_is_told_what_its_arguments_are_now() -> None:
    class Old(StageSplitter):
        """Takes the search space, as in 0.1."""

        name = "old"

        def split(self, plan: Plan, space: Any, rng: Any) -> Any:
            raise NotImplementedError

    class OldSteps(StageSplitter):
        """Counts by the search space, as in 0.1."""

        name = "old-steps"

        def split(self, plan: Plan, costs: CostModel, rng: Any) -> Any:
            raise NotImplementedError

        def steps(self, space: Any) -> int:
            raise NotImplementedError

    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_splitters=hookimpl(lambda: [Old, OldSteps])), Origin("parts", "old", "1.0"))
    assert told(host) == [
        (
            "old 1.0",
            "Old.split takes 'space', which is costs since 0.2, a CostModel with cost(plan, stage), block_count and model",
        ),
        ("old 1.0", "OldSteps.steps takes 'space', which is plan since 0.2, the plan that split is given"),
    ]


def test_an_objective_of_0_1_is_told_the_new_name_of_its_method() -> None:
    class Old(Objective):
        """Gives points, as in 0.1."""

        name = "old"

        def item_values(self, staged: Any, items: Any) -> list[float]:
            raise NotImplementedError

        def points(self, mean: float) -> float:
            return mean

    host = PluginHost()
    host.register(SimpleNamespace(pdtrim_objectives=hookimpl(lambda: [Old])), Origin("parts", "old", "1.0"))
    assert told(host) == [("old 1.0", "Old does not define score: Objective.points is Objective.score since 0.2")]
