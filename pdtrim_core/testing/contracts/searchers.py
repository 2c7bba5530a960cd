"""What every searcher must hold to."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pdtrim_core.api.plan_kinds import Searcher
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.data.readings import DIGITS
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.driver import BestPlan
from pdtrim_core.testing.contracts.shared import check_component, contract
from pdtrim_core.testing.contracts.tables import BLOCKS, Table, rugged, search_on_table, stopped_on_table, table_spaces


@contract
class SearcherContract:
    """What every searcher must hold to."""

    component: ClassVar[type[Searcher]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Searcher, self.options)

    def test_every_plan_removes_the_blocks_asked_for(self) -> None:
        """For none, one, some and all blocks but one, with and without merges."""
        for space in table_spaces():
            _, requested = self._search(space)
            for plan in requested:
                plan.check_fits(BLOCKS)
                assert plan.decode.blocks_removed == space.count
                assert space.problems(plan) == []

    def test_the_best_plan_is_no_worse_than_the_first(self) -> None:
        """It requests one plan at least, and the first one without a floor."""
        for space in table_spaces():
            found, requested = self._search(space)
            assert found is not None, "it requested no plan, or its first one with a floor"
            assert found.score >= round(rugged(requested[0]), DIGITS)

    def test_the_same_seed_gives_the_same_search(self) -> None:
        """All randomness comes from `rng`."""
        for space in table_spaces():
            assert self._search(space) == self._search(space)

    def test_it_copes_with_candidates_that_miss_their_floor(self) -> None:
        """The first plan has a score of 100 and every other one 0."""
        for space in table_spaces():
            _, (first, *_) = self._search(space)

            def value(plan: Plan, best: Plan = first) -> float:
                return 100.0 * (plan == best)

            found, _ = search_on_table(self._made(), space, Table(value))
            assert found is not None
            assert found.plan == first

    def test_early_stopping_changes_nothing(self) -> None:
        """A candidate cut short and one measured in full that misses its floor give the same result."""
        for space in table_spaces():
            assert self._search(space) == search_on_table(self._made(), space, Table(rugged, early_stop=False))

    def test_stopped_at_any_time_a_run_has_a_plan_of_full_size(self) -> None:
        """Once `search.minutes` are over: the best that it has, or what it has begun with, filled up by block scores."""
        for space in table_spaces():
            for after in (0, 1, 2, 4, 8, 16):
                try:
                    plan = stopped_on_table(self._made(), space, Table(rugged), after=after)
                except PdtrimError as error:
                    assert "search.minutes" in str(error), f"stopped after {after} measurements: {error}"  # noqa: PT017
                    continue
                plan.check_fits(BLOCKS)
                assert space.problems(plan) == []

    def test_its_ceiling_on_prefill_holds(self) -> None:
        """What `prefill_ceiling` says, `check --budget` tells the user; None promises nothing."""
        searcher = self._made()
        for space in table_spaces():
            if searcher.prefill_ceiling is not None and not searcher.problems(StageFacts(space.costs, space.count)):
                found, _ = self._search(space)
                assert found is not None
                assert space.cost(found.plan, "prefill") <= searcher.prefill_ceiling

    def test_what_it_calls_out_of_reach_is_refused(self) -> None:
        """What `problems` says before a run, `search` raises."""
        for space in table_spaces():
            if self._made().problems(StageFacts(space.costs, space.count)):
                with pytest.raises(PdtrimError):
                    self._search(space)

    def _made(self) -> Searcher:
        return self.component(**self.options)

    def _search(self, space: SearchSpace) -> tuple[BestPlan | None, list[Plan]]:
        return search_on_table(self._made(), space, Table(rugged))
