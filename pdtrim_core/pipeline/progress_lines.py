"""What a run tells while it works, as lines, for those who carry it out from Python."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.data.readings import Candidate
from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.wording import counted, visible

Progress = bool | Callable[[str], None]
"""Whether lines go to stderr, or the function that takes them."""


class ProgressLines:
    """A listener that gives a function a line when a step begins or ends, and for each note."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self._tell = tell
        self._steps: Sequence[str] = ()
        self._count = 0
        self._best: float | None = None

    @hookimpl
    def pdtrim_run_started(self, recipe: Mapping[str, Any], out: Path, steps: Sequence[str]) -> None:
        """Say where the run goes."""
        self._steps = steps
        self._tell(f"run {recipe['model']['path']} -> {out}")

    @hookimpl
    def pdtrim_step_started(self, step: str, about: int | None) -> None:
        """Say which step of how many begins."""
        self._count, self._best = 0, None
        place = f"step {self._steps.index(step) + 1} of {len(self._steps)}: " if step in self._steps else ""
        most = f", at most {counted(about, 'measurement')}" if about else ""
        self._tell(f"{place}{step}{most}")

    @hookimpl
    def pdtrim_note_made(self, note: str) -> None:
        """Say a note."""
        self._tell(f"note: {note}")

    @hookimpl
    def pdtrim_candidate_measured(self, candidate: Candidate) -> None:
        """Count."""
        self._count += 1
        self._best = self._best if candidate.best is None else candidate.best

    @hookimpl
    def pdtrim_step_finished(self, step: str, seconds: float) -> None:
        """Say how long a step took, and what was measured in it."""
        self._tell(step_line(step, seconds, self._count, self._best))


@contextmanager
def telling(host: PluginHost, progress: Progress) -> Iterator[None]:
    """Tell what runs of a host do as long as this lasts. Raises `PdtrimError` for what takes no lines."""
    if not isinstance(progress, bool) and not callable(progress):
        raise PdtrimError(f"progress is True, or a function that takes a line such as print, not {type(progress).__name__}")
    if progress is False:
        yield
        return
    lines = ProgressLines(_to_stderr if progress is True else progress)
    with host.listening(lines, f"progress {id(lines)}"):
        yield


def _to_stderr(line: str) -> None:
    sys.stderr.write(f"{visible(line)}\n")
    sys.stderr.flush()


def step_line(step: str, seconds: float, count: int, best: float | None, about: int | None = None) -> str:
    """Return how long a step took, or takes, and what was measured in it; `about` is how many candidates there are at most."""
    most = f" of at most {about}" if about else ""
    measured = f", {count}{most} candidate{'s' * (count > 1 or bool(most))}{best_words(best)}" if count else ""
    return f"{step}: {seconds:.1f} s{measured}"


def best_words(score: float | None) -> str:
    """Return the best score so far in words that go on a line; none where there is none."""
    return "" if score is None else f", best {score:.2f}"
