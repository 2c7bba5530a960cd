"""The steps of a run as events, with what the outcome keeps of them: seconds, notes, the requests of the search."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Self

from pdtrim_core.host.host import PluginHost
from pdtrim_core.results.outcome import SearchStep
from pdtrim_core.wording import LONGEST_LINE, shortened


@dataclass
class RunEvents:
    """The steps of a run as events, with the seconds that each took, the notes made on the way, and the steps of the search."""

    host: PluginHost
    seconds: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    search: list[SearchStep] = field(default_factory=list)
    saved: Callable[[], None] = lambda: None
    """Called whenever a step begins or ends, so that what was spent is not forgotten."""
    _underway: dict[str, float] = field(default_factory=dict)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *raised: object) -> None:
        self.host.tell("pdtrim_run_ended")

    @contextmanager
    def step(self, name: str, about: int | None = None) -> Iterator[None]:
        """Run a step: listeners hear when it begins and when it ends. One that is run again adds to its seconds."""
        self.host.tell("pdtrim_step_started", step=name, about=about)
        started = time.perf_counter()
        self._underway = {name: started}
        self.saved()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 3)
        self._underway = {}
        self.saved()
        self.host.tell("pdtrim_step_finished", step=name, seconds=self.seconds[name])

    def spent(self) -> dict[str, float]:
        """Return the seconds of each step until now, with those of a step that has not ended."""
        now = time.perf_counter()
        underway = {name: round(self.seconds.get(name, 0.0) + now - started, 3) for name, started in self._underway.items()}
        return {**self.seconds, **underway}

    def note(self, text: str) -> None:
        """Say something to the user, now and in the outcome."""
        text = shortened(text, LONGEST_LINE) if len(text) > LONGEST_LINE else text
        self.notes.append(text)
        self.host.tell("pdtrim_note_made", note=text)

    def preview(self, text: str) -> None:
        """Say something to the user now; the outcome does not keep it."""
        self.host.tell("pdtrim_note_made", note=text)
