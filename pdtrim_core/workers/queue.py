"""The jobs that wait for a worker, each worker's own ones first; torch- and Ray-free."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition
from typing import Any

from pdtrim_core.pipeline.executor import Job


@dataclass(eq=False)
class Task:
    """A job, what it is near to, the one worker that it is for if it is, its future, and how many workers were lost with it."""

    job: Job[Any]
    arguments: tuple[Any, ...]
    near: object = None
    only: int | None = None
    future: Future[Any] = field(default_factory=Future)
    losses: int = 0

    def begin(self) -> bool:
        """Tell whether it is to be done; not if it was cancelled before it was ever begun."""
        return self.future.running() or self.future.set_running_or_notify_cancel()


class TaskQueue:
    """Gives waiting tasks to workers.

    A task belongs to the worker that had one near the same thing before. A worker takes its own tasks in order, then those that
    belong to nobody, and then, so that none is idle, the last one of another.
    """

    def __init__(self) -> None:
        self._waiting: list[Task] = []
        self._owners: dict[object, int] = {}
        self._retired: set[int] = set()
        self._changed = Condition()
        self._closed = False

    def put(self, tasks: Iterable[Task], *, first: bool = False) -> None:
        """Let tasks wait, behind the others or in front of them."""
        with self._changed:
            if first:
                self._waiting[:0] = tasks
            else:
                self._waiting += tasks
            self._changed.notify_all()

    def take(self, worker: int) -> Task | None:
        """Wait for a task for a worker; None once the queue is closed."""
        with self._changed:
            while True:
                if self._closed:
                    return None
                self._waiting = [task for task in self._waiting if not task.future.cancelled()]
                task = self._choose(worker)
                if task is not None:
                    self._waiting.remove(task)
                    if task.near is not None:
                        self._owners.setdefault(task.near, worker)
                    return task
                self._changed.wait()

    def retire(self, worker: int) -> None:
        """Let others do what is for one worker alone, which takes no more."""
        with self._changed:
            self._retired.add(worker)
            self._changed.notify_all()

    def _choose(self, worker: int) -> Task | None:
        free = [task for task in self._waiting if task.only is None or task.only in self._retired]
        own = [task for task in self._waiting if task.only == worker]
        own += [task for task in free if self._owners.get(task.near) == worker]
        ranked = [*own, *(task for task in free if task.near not in self._owners), *reversed(free)]
        return ranked[0] if ranked else None

    def close(self) -> list[Task]:
        """Give nothing out any more; return what still waited."""
        with self._changed:
            self._closed = True
            left, self._waiting = self._waiting, []
            self._changed.notify_all()
            return left
