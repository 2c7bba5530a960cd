"""A report: tells a person what a run did."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pydantic import Field

from pdtrim_core.api import Outcome, Report, hookimpl


class Example(Report):
    """One sentence: what decode lost, and what that cost in score."""

    name = "example"

    digits: int = Field(1, ge=0, le=6, description="digits behind the point")

    def report(self, outcome: Outcome, out: Path) -> str | Path:
        """Return text to print, in ASCII, or the path of a file written under `out`."""
        del out
        scores = {row.name: row.calibration.score for row in outcome.rows}
        lost = "the whole model was replaced" if outcome.saved_plan is None else f"decode lost {outcome.plan.plan.decode}"
        last = list(scores)[-1]
        return f"{outcome.model}: {lost}; {last} has {scores[last] - scores['dense']:+.{self.digits}f} beside dense"


@hookimpl
def pdtrim_reports() -> Iterable[type[Report]]:
    """Yield the reports of this package."""
    yield Example
