"""The plan as a file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pdtrim_core.api import Exporter, write_whole

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Outcome


class PlanFile(Exporter):
    """Writes plan.json: both removals, which of prefill's K/V each decode block reads, and the model they are for.

    A run whose pruner replaced the whole model has no plan and gets no such file.
    """

    name = "plan"
    carries_selections = True
    carries_parts = True
    reads_weights = False

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write one file, or none where there is no plan."""
        del model
        if outcome.saved_plan is not None:
            yield write_whole(out / "plan.json", outcome.plan.to_json())
