"""What the steps of a run found: what its outcome is put together from."""

from __future__ import annotations

from typing import NamedTuple

from pdtrim_core.execution.stage_modules import Modules
from pdtrim_core.model.weights import modules_of
from pdtrim_core.pipeline.found_removal import FoundRemoval
from pdtrim_core.pipeline.quantize import Quantized
from pdtrim_core.pipeline.recover import Recovered
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.outcome import Row


class Finished(NamedTuple):
    """What decode loses, the plan that the splitter made of it, what recovery made of that, the result table, and its formats."""

    found: FoundRemoval
    plan: Plan
    recovered: Recovered
    rows: tuple[Row, ...]
    quantized: Quantized = Quantized()

    @property
    def unquantized(self) -> Modules:
        """The modules of the plan by element, and what recovery gave to it; nothing where a pruner replaced the whole model."""
        if self.found.replaced is not None:
            return {}
        return {**modules_of(self.plan, self.found.modules), **self.recovered.layers}

    @property
    def modules(self) -> Modules:
        """The same, with the layers that have another number format."""
        return {**self.unquantized, **self.quantized.layers}
