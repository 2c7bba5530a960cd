"""Which step of how many a run is at."""

from __future__ import annotations

from collections.abc import Sequence


class StepCount:
    """Counts the steps of a run by their names: one may be left out, and one may come again."""

    def __init__(self) -> None:
        self._steps: Sequence[str] = ()
        self._number = 0

    def begin(self, steps: Sequence[str]) -> None:
        """Begin a run with these steps."""
        self._steps, self._number = steps, 0

    def at(self, step: str) -> None:
        """Come to a step. One that stands in front of the last, or that nobody announced, counts as a part of that."""
        later = [number for number, name in enumerate(self._steps, start=1) if name == step and number > self._number]
        self._number = later[0] if later else self._number

    def words(self, *, short: bool = False) -> str:
        """Return the place in words that end with a space; nothing where no steps were announced."""
        if not self._steps or not self._number:
            return ""
        return f"{self._number}/{len(self._steps)} " if short else f"step {self._number} of {len(self._steps)}: "
