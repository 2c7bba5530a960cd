"""What a run tells while it works where nobody watches: an object of JSON a line, or nothing."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.cli.heartbeat import SECONDS, Heartbeat
from pdtrim_core.cli.terminal import say

if TYPE_CHECKING:
    from pdtrim_core.data.readings import Candidate
    from pdtrim_core.plan.elements import Merge
    from pdtrim_core.results.recovery import RecoveryResult
    from pdtrim_core.results.task_results import TaskResult


BEGUN = time.monotonic()
"""When the command began; all lines of a command count from here."""

BETWEEN = 1.0
"""Seconds between two lines on how far the same work is."""


def write_line(stream: TextIO, event: str, **facts: Any) -> None:
    """Write an event as an object of JSON on a line of its own."""
    say(json.dumps({"event": event, "time": round(time.monotonic() - BEGUN, 3), **facts}), file=stream, flush=True)


def log_asked_for(arguments: Sequence[str]) -> str:
    """Return how a command line asks to be told what happens: text, json or quiet.

    It is read from the words themselves, as what is wrong with a command line is told in the same way.
    """
    words = list(arguments[: arguments.index("--")] if "--" in arguments else arguments)
    if "--log-format=json" in words or any(pair == ("--log-format", "json") for pair in pairwise(words)):
        return "json"
    return "quiet" if {"--quiet", "-q"} & set(words) else "text"


def remark(text: str) -> None:
    """Say something beside the results, as the command line asks for."""
    asked = log_asked_for(sys.argv[1:])
    if asked == "json":
        write_line(sys.stderr, "note", text=text)
    elif asked == "text":
        say(text, file=sys.stderr, flush=True)


class JsonDisplay:
    """Writes each event of a run as an object on a line of its own: `event`, `time` (seconds since the start) and its facts.

    Where nothing happens for half a minute an event `working` repeats where the run stands.
    """

    def __init__(self, stream: TextIO, seconds: float = SECONDS) -> None:
        self._stream = stream
        self._at: dict[str, Any] = {}
        self._heartbeat = Heartbeat(lambda: self._write("working", **self._at), seconds)
        self._candidates = 0
        self._advanced: tuple[object, ...] = ()
        self._advanced_at = 0.0

    def working(self, doing: str = "") -> AbstractContextManager[object]:
        """Return the context in which the stream is never silent for long."""
        self._at = {"doing": doing}
        return self._heartbeat

    def comparing(self) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context in which the share that is done is written as an event."""
        return nullcontext(lambda share: self._advance("comparison", 0, 0, share))

    def say(self, text: str) -> None:
        """Write what begins, which is not a step of a run."""
        self._at = {"doing": text}
        self.tell(text)

    def tell(self, text: str) -> None:
        """Write something beside what is being done."""
        self._write("said", text=text)

    @hookimpl
    def pdtrim_run_started(self, recipe: Mapping[str, Any], out: Path, steps: Sequence[str]) -> None:
        """Write the model, the folder and the steps."""
        self._heartbeat.__enter__()
        self._write("run_started", model=recipe["model"]["path"], out=str(out), steps=list(steps))

    @hookimpl
    def pdtrim_step_started(self, step: str, about: int | None) -> None:
        """Write the step, with how many measurements it takes at most."""
        self._at, self._candidates, self._advanced = {"step": step, "about": about}, 0, ()
        self._write("step_started", **self._at)

    @hookimpl
    def pdtrim_step_finished(self, step: str, seconds: float) -> None:
        """Write how long the step took."""
        self._write("step_finished", step=step, seconds=seconds, candidates=self._candidates)

    @hookimpl
    def pdtrim_note_made(self, note: str) -> None:
        """Write a note."""
        self._write("note", text=note)

    @hookimpl
    def pdtrim_candidate_measured(self, candidate: Candidate) -> None:
        """Write a candidate's score, None where it was cut short, and the best so far."""
        self._candidates += 1
        self._at = {**self._at, "candidates": self._candidates, "best": candidate.best}
        self._write("candidate", number=candidate.number, score=candidate.reading.score, best=candidate.best)

    @hookimpl
    def pdtrim_work_advanced(self, what: str, number: int, count: int, share: float) -> None:
        """Write how far the work of a step is."""
        self._advance(what, number, count, share)

    @hookimpl
    def pdtrim_recovery_advanced(self, name: str, number: int, count: int, share: float) -> None:
        """Write how far a recovery is."""
        self._advance(name, number, count, share)

    @hookimpl
    def pdtrim_merge_trained(self, merge: Merge, trained: float, untrained: float) -> None:
        """Write how a merge came out."""
        self._write("merge", blocks=list(merge.blocks), untrained=untrained, trained=trained)

    @hookimpl
    def pdtrim_recovery_finished(self, result: RecoveryResult) -> None:
        """Write how a recovery came out."""
        kl = {"before": result.before.value, "after": result.after.value}
        self._write("recovery", name=result.name, **kl, kept=result.kept, seconds=result.seconds)

    @hookimpl
    def pdtrim_fidelity_measured(self, result: TaskResult) -> None:
        """Write how near a variant is to the dense model."""
        self._write("fidelity", variant=result.variant, **{name: metric.value for name, metric in result.metrics.items()})

    @hookimpl
    def pdtrim_run_ended(self) -> None:
        """Write that the run is over, finished or not."""
        if self._heartbeat.inside:
            self._heartbeat.__exit__(None, None, None)
            self._write("run_ended")

    def _advance(self, what: str, number: int, count: int, share: float) -> None:
        """Write the beginning and the end of each work, and what is between them at most once a second: some tell each token."""
        end, now = share >= 1, time.monotonic()
        work = (what, number, count, end)
        if work == self._advanced and (end or now - self._advanced_at < BETWEEN):
            return
        self._advanced, self._advanced_at = work, now
        self._write("advanced", what=what, number=number, count=count, share=round(share, 4))

    def _write(self, event: str, **facts: Any) -> None:
        self._heartbeat.said()
        write_line(self._stream, event, **facts)


class QuietDisplay:
    """Tells nothing while a run works; what comes out of it and what goes wrong is printed all the same."""

    def working(self, doing: str = "") -> AbstractContextManager[object]:
        """Return a context in which nothing is told."""
        del doing
        return nullcontext()

    def comparing(self) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context in which nothing is told."""
        return nullcontext(lambda share: None)

    def say(self, text: str) -> None:
        """Keep silent."""

    def tell(self, text: str) -> None:
        """Keep silent."""

    @hookimpl
    def pdtrim_run_ended(self) -> None:
        """Keep silent."""
