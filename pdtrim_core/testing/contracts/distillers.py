"""What every distiller must hold to."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
from torch import nn

from pdtrim_core.api.distillation import Student, TeacherBatches
from pdtrim_core.api.plan_kinds import Distiller
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline.merge_store import training_items
from pdtrim_core.plan.elements import Merge
from pdtrim_core.testing.contracts.shared import check_component, contract, no_global_randomness
from pdtrim_core.testing.contracts.untouched import left_as_it_was
from pdtrim_core.testing.models import tiny_llama

PAIR = Merge(keep=3, drop=2)
SLACK = 0.01
"""Share of an error: Adam makes steps of full size out of rounding, which lead a few parts in ten thousand away."""
SEQUENCES = [[(7 * row + 3 * column) % 256 for column in range(32)] for row in range(4)]


@contract
class DistillerContract:
    """What every distiller must hold to."""

    component: ClassVar[type[Distiller]]
    options: ClassVar[dict[str, Any]] = {}
    departs: ClassVar[dict[str, str]] = {}

    def test_it_is_a_well_formed_component(self) -> None:
        """See `check_component`."""
        check_component(self.component, Distiller, self.options)

    def test_it_yields_finite_losses_that_do_not_rise(self) -> None:
        """At least one loss; the last is not above the first."""
        losses = self._distil(tiny_llama())[1]
        assert losses, "it yielded no loss"
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] <= losses[0]

    def test_it_trains_in_place(self) -> None:
        """The student's weights are others than before."""
        model = tiny_llama()
        module, _ = self._distil(model)
        before = model.blocks[PAIR.keep].state_dict()
        assert any(not torch.equal(value, before[name]) for name, value in module.state_dict().items())

    def test_it_trains_in_float32_where_the_model_is_in_bfloat16(self) -> None:
        """The student is in float32 then, and stays so: its loss does not rise, and its weights are others than before."""
        model = tiny_llama(dtype=torch.bfloat16)
        module, losses = self._distil(model)
        assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}, "it changed the student's number format"
        assert all(math.isfinite(loss) for loss in losses)
        assert losses[-1] <= losses[0]
        before = model.blocks[PAIR.keep].state_dict()
        assert any(not torch.equal(value, before[name].float()) for name, value in module.state_dict().items())

    def test_what_is_frozen_stays(self) -> None:
        """Only `student.parameters()` may change: K and V of a merge that shares prefill's cache must not."""
        module, _ = self._distil(tiny_llama(), frozen="self_attn.k_proj")
        before = tiny_llama().blocks[PAIR.keep].get_submodule("self_attn.k_proj").state_dict()
        after = module.get_submodule("self_attn.k_proj").state_dict()
        assert all(torch.equal(value, before[name]) for name, value in after.items())

    def test_the_same_student_and_tokens_give_the_same_block(self) -> None:
        """No randomness, no memory of an earlier call."""
        with no_global_randomness():
            one, other = (self._distil(tiny_llama())[0].state_dict() for _ in range(2))
        assert all(torch.equal(value, other[name]) for name, value in one.items())

    def test_merging_a_silent_block_costs_nothing(self) -> None:
        """The block that training starts from already does what the pair does; training must not lead away from it."""
        model = tiny_llama(silent={PAIR.drop})
        module, _ = self._distil(model)
        batches = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), PAIR)
        student, other = Student(model, PAIR, module), Student(model, Merge(PAIR.drop, PAIR.keep), model.blocks[PAIR.drop])
        with torch.no_grad():
            trained, dropped = _error(student, batches), _error(other, batches)
        assert trained < SLACK * dropped, f"it ends with {trained / dropped:.2g} of the error of dropping the other block"

    def test_the_model_is_left_as_it_was(self) -> None:
        """See `left_as_it_was`: weights, gradients, hooks, modes, attributes and settings of the dense model."""
        model = tiny_llama()
        with left_as_it_was(model):
            self._distil(model)

    def _distil(self, model: BlockModel, frozen: str = "") -> tuple[nn.Module, list[float]]:
        module = copy.deepcopy(model.blocks[PAIR.keep]).float().requires_grad_(requires_grad=True)
        if frozen:
            module.get_submodule(frozen).requires_grad_(requires_grad=False)
        batches = TeacherBatches(PrefixCache(model), training_items(SEQUENCES), PAIR)
        distiller = self.component(**self.options)
        with torch.enable_grad():
            losses = [float(loss) for loss in distiller.distil(Student(model, PAIR, module), batches)]
        return module, losses


def _error(student: Student, batches: TeacherBatches) -> float:
    """Return the mean squared difference of a student's hidden states from the dense model's."""
    total, count = 0.0, 0
    for batch in batches:
        total += float((student(batch) - batch.after_BTD).square().sum())
        count += batch.after_BTD.numel()
    return total / count
