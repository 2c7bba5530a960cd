"""The times of a bar, each with its name: how long it has worked, and about how long the rest will take."""

from __future__ import annotations

from rich.progress import ProgressColumn, Task
from rich.text import Text


class TimesColumn(ProgressColumn):
    """Shows the time that a task has taken, and the time left at the same pace, as soon as that is known."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        """Return the times of a task."""
        taken, done, total = task.elapsed or 0.0, task.completed, task.total
        left = f", left {clock(taken * (total - done) / done)}" if total and 0 < done <= total else ""
        return Text(f"elapsed {clock(taken)}{left}", no_wrap=True)


def clock(seconds: float) -> str:
    """Return a time as a clock shows it: 0:07, 12:30, 1:02:03."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
