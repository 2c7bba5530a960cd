"""What a run shows while it works: a live display in a terminal, one line a step in a pipe. An event plugin."""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.cli.heartbeat import SECONDS, Heartbeat
from pdtrim_core.cli.logs import JsonDisplay, QuietDisplay
from pdtrim_core.cli.step_count import StepCount
from pdtrim_core.cli.terminal import console, say
from pdtrim_core.pipeline.progress_lines import best_words, step_line

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from rich.console import Console
    from rich.progress import TaskID

    from pdtrim_core.cli.options import LogFormat
    from pdtrim_core.data.readings import Candidate
    from pdtrim_core.plan.elements import Merge
    from pdtrim_core.results.recovery import RecoveryResult
    from pdtrim_core.results.task_results import TaskResult

WIDE = 100
"""Columns from which on a terminal has room for a bar and whole words."""
COMPARISON = "comparison"
"""The work of comparing the variants of a run with the dense model."""
CANDIDATES = "candidates"
"""The work that candidates are which are measured side by side."""
SHORT = 120
"""Seconds up to which a time is told in seconds."""


def progress_display(stream: TextIO, log: LogFormat = "text", *, quiet: bool = False) -> Display:
    """Return the listener that fits a stream and what was asked for."""
    if quiet:
        return QuietDisplay()
    if log == "json":
        return JsonDisplay(stream)
    screen = console(stream)
    return LiveDisplay(screen) if screen.is_terminal else LineDisplay(stream)


class Display(Protocol):
    """What shows how far a run, or a sweep of runs, has come."""

    def working(self, doing: str = "") -> AbstractContextManager[object]:
        """Return a context for what is no step of a run; `doing` is what it is until something else is said."""

    def comparing(self) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context for the comparison of a finished run with the dense model; it is told the share that is done."""

    def say(self, text: str) -> None:
        """Tell what begins, which is not a step of a run."""

    def tell(self, text: str) -> None:
        """Tell something beside what is being done."""


class LineDisplay:
    """Writes one line a step, and one a note; in a step that takes long, where it stands at least every half minute."""

    def __init__(self, stream: TextIO, seconds: float = SECONDS) -> None:
        self._stream = stream
        self._best: float | None = None
        self._count = 0
        self._about: int | None = None
        self._steps = StepCount()
        self._doing = ""
        self._since = time.monotonic()
        self._at_work, self._at_work_on, self._share, self._share_since = "", "", 0.0, 0.0
        self._heartbeat = Heartbeat(self._still, seconds)
        self._running, self._in_step = ExitStack(), ExitStack()

    def working(self, doing: str = "") -> Heartbeat:
        """Return the context in which the stream is never silent for long, for what is no step of a run."""
        self._begin(doing)
        return self._heartbeat

    def comparing(self) -> AbstractContextManager[Callable[[float], None]]:
        """Return a context in which the lines of the heartbeat have the share that is done."""
        return nullcontext(lambda share: self._advance(COMPARISON, share))

    def say(self, text: str) -> None:
        """Write what begins, which is not a step of a run."""
        self._begin(text)
        self._write(text)

    def tell(self, text: str) -> None:
        """Write something beside what is being done."""
        self._write(text)

    @hookimpl
    def pdtrim_run_started(self, recipe: Mapping[str, Any], out: Path, steps: Sequence[str]) -> None:
        """Say where the run goes."""
        self._steps.begin(steps)
        self._write(f"run {recipe['model']['path']} -> {out}")
        self._running.enter_context(self._heartbeat)

    @hookimpl
    def pdtrim_run_ended(self) -> None:
        """End the heartbeat of the run, if it had begun: one that cannot be opened ends without."""
        self._in_step.close()
        self._running.close()

    @hookimpl
    def pdtrim_step_started(self, step: str, about: int | None) -> None:
        """Forget the last step's figures."""
        # Of what is no run, such as a ranking, only the steps are heard.
        self._in_step.close()
        self._in_step.enter_context(self._heartbeat)
        self._steps.at(step)
        self._begin(step)
        self._about = about

    @hookimpl
    def pdtrim_note_made(self, note: str) -> None:
        """Write a note."""
        self._write(f"note: {note}")

    @hookimpl
    def pdtrim_merge_trained(self, merge: Merge, trained: float, untrained: float) -> None:
        """Write how a merge came out."""
        self._write(_merge_line(merge, trained, untrained))

    @hookimpl
    def pdtrim_recovery_advanced(self, name: str, number: int, count: int, share: float) -> None:
        """Remember which recovery is at work, and how far it has come."""
        self._advance(_part_of(name, number, count), share)

    @hookimpl
    def pdtrim_work_advanced(self, what: str, number: int, count: int, share: float) -> None:
        """Remember which work is done, and how far it has come; candidates side by side are counted once they are through."""
        words = f"the next {count}" if what == CANDIDATES else _part_of(what, number, count)
        self._advance(words, share, since=what)

    @hookimpl
    def pdtrim_recovery_finished(self, result: RecoveryResult) -> None:
        """Write how a recovery came out."""
        self._at_work = ""
        self._write(_recovery_line(result))

    @hookimpl
    def pdtrim_candidate_measured(self, candidate: Candidate) -> None:
        """Count."""
        self._count += 1
        if self._at_work_on == CANDIDATES:
            self._at_work = ""
        self._best = self._best if candidate.best is None else candidate.best

    @hookimpl
    def pdtrim_step_finished(self, step: str, seconds: float) -> None:
        """Write the step's line."""
        self._in_step.close()
        self._write(step_line(step, seconds, self._count, self._best))

    def _begin(self, doing: str) -> None:
        self._doing, self._since = doing, time.monotonic()
        self._best, self._count, self._about, self._at_work, self._at_work_on = None, 0, None, "", ""

    def _advance(self, words: str, share: float, since: str = "") -> None:
        """Take note of what is at work; the time that it has taken counts from when this, or `since`, was first told."""
        if (since or words) != self._at_work_on or not self._at_work:
            self._at_work_on, self._share_since = since or words, time.monotonic()
        self._at_work, self._share = words, share

    def _still(self) -> None:
        taken = time.monotonic() - self._since
        line = step_line(f"{self._steps.words()}{self._doing or 'beginning'}", taken, self._count, self._best, self._about)
        self._write(f"still: {line}{self._how_far() or _left(taken, self._count, self._about)}")

    def _how_far(self) -> str:
        """Return what is at work in the step, how much of it is done, and how long the rest will take at the same pace."""
        doing, share, taken = self._at_work, self._share, time.monotonic() - self._share_since
        if not doing:
            return ""
        left = f", {100 * share:.0f} %, about {duration(taken * (1 - share) / share)} left" if 0 < share <= 1 else ""
        return f", {doing}{left}"

    def _write(self, text: str) -> None:
        self._heartbeat.said()
        say(text, file=self._stream, flush=True)


def _left(seconds: float, count: int, about: int | None) -> str:
    """Return how long the rest takes at the same pace, as far as that is known."""
    return f", about {duration(seconds * (about - count) / count)} left" if about and 0 < count <= about else ""


def duration(seconds: float) -> str:
    """Return a time as people say it: 45 s, 3 min, 2 h 5 min."""
    if seconds < SHORT:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _merge_line(merge: Merge, trained: float, untrained: float) -> str:
    return f"merge {merge}: error {untrained:.3g} before training, {trained:.3g} after"


def _part_of(name: str, number: int, count: int) -> str:
    return f"{name} ({number} of {count})" if number else name


def _recovery_line(result: RecoveryResult) -> str:
    share = result.taken_away
    end = "left out" if not result.kept or share is None else f"{100 * share:.0f} % taken away"
    about = f"KL {result.before.value:.3f} -> {result.after.value:.3f}, {end}"
    return f"recovery {result.name}: {about}; {result.tokens:,} tokens, {result.seconds:.1f} s"


class LiveDisplay:
    """Draws a line for the step that works: which of how many it is, its count, the best value so far, the time left.

    A terminal that is wide has a bar, too; one that is narrow has short words.
    """

    def __init__(self, screen: Console) -> None:
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn  # noqa: PLC0415 - not every command draws
        from rich.table import Column  # noqa: PLC0415 - the same

        from pdtrim_core.cli.times_column import TimesColumn  # noqa: PLC0415 - the same

        self._console = screen
        self._narrow = screen.width < WIDE
        what = Column(no_wrap=True, overflow="ellipsis", ratio=1 if self._narrow else None)
        self._progress = Progress(
            SpinnerColumn("line"),
            TextColumn("{task.description}", markup=False, table_column=what),
            *([] if self._narrow else [BarColumn(bar_width=20)]),
            TextColumn("{task.fields[figures]}", markup=False, table_column=Column(no_wrap=True)),
            TimesColumn(),
            console=screen,
            transient=True,
            expand=self._narrow,
        )
        self._steps = StepCount()
        self._step = ""
        self._task: TaskID | None = None
        self._count = 0
        self._about: int | None = None
        self._at_work = ""
        self._best: float | None = None

    def working(self, doing: str = "") -> AbstractContextManager[object]:
        """Return a context for what is no step of a run, in which nothing is drawn."""
        del doing
        return nullcontext()

    @contextmanager
    def comparing(self) -> Iterator[Callable[[float], None]]:
        """Draw a bar inside, as of a run's own comparison; nothing of it is left behind."""
        self.pdtrim_step_started("fidelity", None)
        try:
            yield lambda share: self._advance(COMPARISON, COMPARISON, share)
        finally:
            if self._task is not None:
                self._progress.remove_task(self._task)
            self._task = None
            self._progress.stop()

    def say(self, text: str) -> None:
        """Print what begins, which is not a step of a run."""
        self._console.print(text, soft_wrap=True)

    def tell(self, text: str) -> None:
        """Print something beside what is being done, above the bar."""
        self.say(text)

    @hookimpl
    def pdtrim_run_started(self, recipe: Mapping[str, Any], out: Path, steps: Sequence[str]) -> None:
        """Say where the run goes."""
        self._steps.begin(steps)
        self._console.print(f"run {recipe['model']['path']} -> {out}")
        self._progress.start()

    @hookimpl
    def pdtrim_step_started(self, step: str, about: int | None) -> None:
        """Begin a bar."""
        self._progress.start()
        self._count, self._about, self._best, self._at_work = 0, about, None, ""
        self._steps.at(step)
        self._step = step
        self._begin()

    def _begin(self) -> None:
        words = f"{self._steps.words(short=self._narrow)}{self._step}"
        self._task = self._progress.add_task(words, total=self._about, figures="")

    @hookimpl
    def pdtrim_note_made(self, note: str) -> None:
        """Print a note above the bar."""
        self._progress.console.print(f"note: {note}")

    @hookimpl
    def pdtrim_merge_trained(self, merge: Merge, trained: float, untrained: float) -> None:
        """Print how a merge came out above the bar."""
        self._progress.console.print(_merge_line(merge, trained, untrained))

    @hookimpl
    def pdtrim_recovery_advanced(self, name: str, number: int, count: int, share: float) -> None:
        """Move the bar of the recovery at work; it begins anew with each, as one does not tell how long another will take."""
        words = _part_of(name, number, count)
        self._advance(words, words, share)

    @hookimpl
    def pdtrim_work_advanced(self, what: str, number: int, count: int, share: float) -> None:
        """Move the bar of what is at work, one for all its parts; candidates side by side are a part of all candidates."""
        if what == CANDIDATES:
            self._within(count, share)
            return
        self._advance(what, _part_of(what, number, count), share)

    def _advance(self, what: str, words: str, share: float) -> None:
        if self._task is None:
            return
        if what != self._at_work:
            self._at_work = what
            self._progress.reset(self._task, total=1.0)
        self._progress.update(self._task, completed=share, figures=words)

    @hookimpl
    def pdtrim_recovery_finished(self, result: RecoveryResult) -> None:
        """Print how a recovery came out above the bar."""
        self._at_work = ""
        self._progress.console.print(_recovery_line(result))

    @hookimpl
    def pdtrim_candidate_measured(self, candidate: Candidate) -> None:
        """Move the bar."""
        if self._task is not None:
            self._count += 1
            # Finalists are measured again on other items, where nothing is the best.
            self._best = self._best if candidate.best is None else candidate.best
            if self._at_work:
                # What went before, such as the texts of a pruner that measures, is done. A reset would keep its total.
                self._at_work = ""
                self._progress.remove_task(self._task)
                self._begin()
            total = "" if self._about is None else f"/{self._about}"
            figures = f"{self._count}{total}{self._best_words()}"
            self._progress.update(self._task, completed=self._count, figures=figures)

    def _within(self, count: int, share: float) -> None:
        """Move the bar by candidates of which this share is done; where nobody knows how many there will be, tell it."""
        if self._task is None:
            return
        if self._about is None:
            self._progress.update(self._task, figures=f"{self._count}, {100 * share:.0f} % of {count} more")
            return
        done = min(self._about, self._count + share * count)
        self._progress.update(self._task, completed=done, figures=f"{done:.0f}/{self._about}{self._best_words()}")

    def _best_words(self) -> str:
        return "" if self._narrow and self._about is not None and self._about > 99 else best_words(self._best)

    @hookimpl
    def pdtrim_fidelity_measured(self, result: TaskResult) -> None:
        """Move the bar, and say which variant it was; where they were measured together, the bar has moved with that work."""
        if self._task is not None:
            self._progress.update(self._task, advance=0 if self._at_work else 1, figures=result.variant)

    @hookimpl
    def pdtrim_step_finished(self, step: str, seconds: float) -> None:
        """Replace the bar by a line."""
        if self._task is not None:
            self._progress.remove_task(self._task)
            self._task = None
            self._progress.console.print(step_line(step, seconds, self._count, self._best))

    @hookimpl
    def pdtrim_run_ended(self) -> None:
        """Take the bar away, whether the run finished or not."""
        self._progress.stop()
