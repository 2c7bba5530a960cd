"""An exporter: writes something that another program uses."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from pdtrim_core.api import Exporter, Outcome, hookimpl, write_whole

if TYPE_CHECKING:
    # It loads torch, which listings do without.
    from pdtrim_core.api import BlockModel


class Example(Exporter):
    """The blocks that each stage still touches, as a short JSON file."""

    name = "example"

    file: str = Field("example-blocks.json", pattern=r"^[\w.-]+$", description="name of the file in the run folder")

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write under `out` and return the paths written. The model must be left as it is."""
        del model
        if outcome.saved_plan is None:
            # The pruner replaced the whole model, so there is no plan to tell of.
            return
        plan, count = outcome.plan.plan, outcome.block_count
        gone = {stage: {b for b in range(count) if plan.state(stage, b) == "gone"} for stage in ("prefill", "decode")}
        kept = {stage: [block for block in range(count) if block not in blocks] for stage, blocks in gone.items()}
        yield write_whole(out / self.file, json.dumps(kept) + "\n")


@hookimpl
def pdtrim_exporters() -> Iterable[type[Exporter]]:
    """Yield the exporters of this package."""
    yield Example
