"""What every pruner must hold to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from pdtrim_core import pipeline
from pdtrim_core.components import Pruner
from pdtrim_core.elements import Shrink
from pdtrim_core.model import BlockModel
from pdtrim_core.plan import Plan
from pdtrim_core.pruning import PruneContext, Pruned
from pdtrim_core.recipe import resolve
from pdtrim_core.stages import StagedModel
from pdtrim_core.testing.contracts.shared import check_component, contract, left_as_it_was, no_global_randomness, rng_of
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from pdtrim_core.testing.models import tiny_llama
from pdtrim_core.trunk import Trunk

SEQUENCES = [tuple(rng_of(number).choices(range(256), k=24)) for number in range(6)]


@contract
class PrunerContract:
    """What every pruner must hold to."""

    component: ClassVar[type[Pruner]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Pruner, self.options)

    @pytest.mark.parametrize("blocks", [1, 2])
    def test_what_it_removes_is_near_the_budget(self, blocks: int) -> None:
        """So many whole blocks, or within half a block of the parameters that they hold."""
        model = tiny_llama()
        removal = self._prune(model, blocks).removal
        gone = model.sizes.parameters - model.sizes.kept_parameters(Plan.unified(removal), "decode")
        block = model.sizes.blocks[0].parameters
        assert abs(gone - blocks * block) <= block / 2

    def test_nothing_goes_where_nothing_is_asked_for(self) -> None:
        """A budget of zero."""
        assert len(self._prune(tiny_llama(), 0).removal) == 0

    def test_its_plan_can_be_measured_and_refined(self) -> None:
        """Both stages as decode, and a prefill that is given back each element alone."""
        model = tiny_llama()
        pruned = self._prune(model, 2)
        start = Plan.unified(pruned.removal)
        spared = [Plan(pruned.removal.without(element), pruned.removal) for element in pruned.removal]
        trunk = Trunk(model, batch_tokens=64)
        for plan in (start, *spared):
            StagedModel(trunk, plan, pruned.modules)

    def test_the_same_model_and_tokens_give_the_same_removal(self) -> None:
        """No randomness but `rng`, no memory of an earlier call."""
        with no_global_randomness():
            first, again = (self._prune(tiny_llama(), 2).removal for _ in range(2))
        assert first == again

    def test_the_model_is_left_as_it_was(self) -> None:
        """Weights, hooks, gradients and modes."""
        model = tiny_llama()
        with left_as_it_was(model):
            self._prune(model, 2)
        assert all(parameter.grad is None for parameter in model.model.parameters()), "a gradient was left behind"
        assert not any(parameter.requires_grad for parameter in model.model.parameters())

    def test_shrinks_name_units_that_the_blocks_have(self) -> None:
        """The narrowed blocks can be cut."""
        model = tiny_llama()
        pruned = self._prune(model, 2)
        for block in {element.block for element in pruned.removal if isinstance(element, Shrink)}:
            model.narrowed(pruned.removal.shrinks_at(block), pruned.modules)

    def test_a_run_refines_its_removal(self, tmp_path: Path) -> None:
        """A whole recipe: prune, split by gains, measure."""
        data = {
            "model": {"path": TINY},
            "pruner": {"use": self.component.name, **self.options},
            "prune": {"blocks": 2},
            "calibration": {"use": "mini", "samples": 8, "held_out": 4},
            "splitter": {"use": "gain", "threshold": 0},
            "objective": "margin",
            "evaluation": {"threads": 1},
        }
        host = tiny_host()
        outcome = pipeline.run(resolve(data, host, where="pruner.toml", out=tmp_path / "run"), host)
        staged, unified = (next(row for row in outcome.rows if row.name == name) for name in ("staged", "unified"))
        assert staged.calibration.points >= unified.calibration.points

    def _prune(self, model: BlockModel, blocks: int) -> Pruned:
        parameters = blocks * model.sizes.blocks[0].parameters
        context = PruneContext(model, SEQUENCES, blocks=blocks, parameters=parameters, rng=rng_of(0), batch_tokens=128)
        return self.component(**self.options).prune(context)
