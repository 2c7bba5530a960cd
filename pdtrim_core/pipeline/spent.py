"""What a run has spent, with what was spent before it went on: kept in its folder while it works."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path

from pdtrim_core.pipeline.events import RunEvents
from pdtrim_core.results.run_state import RunState, read_state, write_state
from pdtrim_core.search.driver import Tally

SECONDS = 2.0
"""How much of its own time a run that is killed may forget."""


class Spent:
    """Seconds by step and counts of candidates, of a run and of what went before it in the same folder."""

    def __init__(self, folder: Path, events: RunEvents) -> None:
        self.tally = Tally()
        self._folder = folder
        self._events = events
        self._before = read_state(folder)
        self._saved = -math.inf

    def forget_before(self) -> None:
        """Count from this run on: what was measured before it was measured by other code."""
        self._before = RunState()

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each step that has ended."""
        return _rounded(_sum(self._before.seconds, self._events.seconds))

    def candidates(self) -> dict[str, int]:
        """Return how many candidates were measured, remembered and cut short until now."""
        return {name: int(count) for name, count in _sum(self._before.candidates, vars(self.tally)).items()}

    def save(self) -> None:
        """Write what was spent into the folder of the run, unless that was done just now."""
        if time.monotonic() - self._saved > SECONDS:
            self.end()

    def end(self, *, made_from: Mapping[str, str] | None = None, files: Mapping[str, str] | None = None) -> None:
        """Write what was spent into the folder of the run; of one that is finished, what it was made from and what it wrote."""
        seconds = _rounded(_sum(self._before.seconds, self._events.spent()))
        write_state(self._folder, RunState(seconds, self.candidates(), made_from or {}, files or {}))
        self._saved = time.monotonic()


def _rounded(seconds: Mapping[str, float]) -> dict[str, float]:
    return {name: round(taken, 3) for name, taken in seconds.items()}


def _sum(one: Mapping[str, float], other: Mapping[str, float]) -> dict[str, float]:
    return {name: one.get(name, 0) + other.get(name, 0) for name in dict.fromkeys([*one, *other])}
