"""What every splitter must hold to."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from pdtrim_core.api.plan_kinds import StageSplitter
from pdtrim_core.api.stage_facts import StageFacts
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.elements import Drop, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.testing.contracts.shared import SILENT, check_component, contract
from pdtrim_core.testing.contracts.tables import Table, rugged, split_on_table, table_spaces
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama


@contract
class SplitterContract:
    """What every splitter must hold to."""

    component: ClassVar[type[StageSplitter]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, StageSplitter, self.options)

    def test_decode_stays_as_it_is(self) -> None:
        """In every plan it requests and in the one that it returns; a run refuses others, naming the splitter."""
        for space in table_spaces():
            final, requested = self._split(space.first)
            assert {plan.decode for plan in (final, *requested)} == {space.first}

    def test_it_returns_the_plan_that_it_was_given_or_one_that_it_measured(self) -> None:
        """What single elements bring need not add up; a run refuses a plan whose score nobody knows."""
        for space in table_spaces():
            final, requested = self._split(space.first)
            assert final in (Plan.unified(space.first), *requested)

    def test_an_empty_removal_gives_the_dense_decode(self) -> None:
        """With `blocks = 0` only prefill may lose anything."""
        final, _ = self._split(Removal())
        assert final.decode == Removal()

    def test_the_same_seed_gives_the_same_split(self) -> None:
        """All randomness comes from `rng`."""
        for space in table_spaces():
            assert self._split(space.first) == self._split(space.first)

    def test_a_silent_block_stays_out_of_prefill(self) -> None:
        """Keeping it in prefill gains nothing, and costs prefill a block."""
        removal = Removal([Drop(1), Drop(SILENT), Drop(4)])

        def value(plan: Plan) -> float:
            return 100.0 - 10 * len(plan.prefill.without(Drop(SILENT))) - 5 * len(plan.decode.without(Drop(SILENT)))

        final, _ = split_on_table(self.component(**self.options), removal, Table(value))
        assert final.prefill.at(SILENT)

    def test_its_ceiling_on_prefill_holds(self) -> None:
        """What `prefill_ceiling` says, `check --budget` tells the user; None promises nothing."""
        splitter = self.component(**self.options)
        for space in table_spaces():
            if splitter.prefill_ceiling is not None and not splitter.problems(StageFacts(space.costs, space.count)):
                final, _ = self._split(space.first)
                assert space.cost(final, "prefill") <= splitter.prefill_ceiling

    def test_what_it_calls_out_of_reach_is_refused(self) -> None:
        """What `problems` says before a run, `split` raises."""
        for space in table_spaces():
            if self.component(**self.options).problems(StageFacts(space.costs, space.count)):
                with pytest.raises(PdtrimError):
                    self._split(space.first)

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`: weights, hooks, modes, attributes and settings, for a splitter that needs the model."""
        if self.component.needs_model:
            model = tiny_llama()
            with left_as_it_was(model):
                split_on_table(self.component(**self.options), Removal([Drop(1), Drop(4)]), Table(rugged), model=model)

    def _split(self, removal: Removal) -> tuple[Plan, list[Plan]]:
        return split_on_table(self.component(**self.options), removal, Table(rugged))
