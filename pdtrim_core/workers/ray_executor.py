"""Workers as actors of Ray, with a thread here for each: it hands its worker one job after the other, and replaces a lost one."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any, TypeVar

from pdtrim_core.errors import PdtrimError, PluginError
from pdtrim_core.pipeline.executor import Job
from pdtrim_core.wording import counted
from pdtrim_core.workers.queue import Task, TaskQueue
from pdtrim_core.workers.worker import Failed

T = TypeVar("T")
MOST_LOSSES = 3
"""Workers that may be lost with the same job: then it is the job that ends them, such as by taking all memory."""
MINUTE = 60.0


class JobError(RuntimeError):
    """A job failed in a way that only a bug can cause; the text is the traceback of the worker."""


class WorkerLostError(Exception):
    """A worker is there no more."""


class RayParcel:
    """Bytes in Ray's object store."""

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def __call__(self) -> bytes:
        """Return the bytes."""
        import ray  # noqa: PLC0415 - an extra, slow to import

        content: bytes = ray.get(self._reference)
        return content


class RayExecutor:
    """So many workers, each with so many CPU threads.

    `start` begins to start one; `check` waits until it is there, and raises `PdtrimError` where there is no room for it. `say`
    is told of workers that are lost, and now and then how many jobs each has done.
    """

    def __init__(
        self,
        start: Callable[[], Any],
        check: Callable[[Any], None],
        *,
        count: int,
        threads: int,
        say: Callable[[str], None],
    ) -> None:
        self._start, self._check = start, check
        self._threads = threads
        self._say = say
        self._tasks = TaskQueue()
        self._done, self._told, self._lock = [0] * count, [0] * count, Lock()
        self._told_at = time.monotonic()
        self._working = set(range(count))
        self.workers = [start() for _ in range(count)]
        """The actors."""
        for worker in self.workers:
            check(worker)
        self._closed = False
        for number in range(count):
            # They end with the process, whatever a worker is doing.
            Thread(target=self._serve, args=(number,), name=f"worker {number}", daemon=True).start()

    @property
    def count(self) -> int:
        """The number of workers."""
        return len(self.workers)

    @property
    def threads(self) -> int:
        """The CPU threads that each worker has."""
        return self._threads

    def submit(self, job: Job[T], *arguments: Any, near: object = None) -> Future[T]:
        """Have a job done by one worker, by the one that had something near the same thing before if it has time."""
        return self._put(Task(job, arguments, near))

    def everywhere(self, job: Job[T], *arguments: Any) -> list[Future[T]]:
        """Have a job done by every worker."""
        return [self._put(Task(job, arguments, only=number)) for number in sorted(self._working)]

    def parcel(self, content: bytes) -> RayParcel:
        """Return bytes in the object store."""
        import ray  # noqa: PLC0415 - an extra, slow to import

        return RayParcel(ray.put(content))

    def close(self) -> None:
        """End all workers, whatever they do."""
        import ray  # noqa: PLC0415 - an extra, slow to import

        self._closed = True
        for task in self._tasks.close():
            task.future.cancel()
        for worker in self.workers:
            ray.kill(worker)

    def _put(self, task: Task) -> Future[Any]:
        if self._working:
            self._tasks.put([task])
        else:
            task.future.set_exception(PdtrimError("no worker is left"))
        return task.future

    def _serve(self, number: int) -> None:
        """Hand jobs to a worker until the executor is closed."""
        while (task := self._tasks.take(number)) is not None:
            if not task.begin():
                continue
            try:
                found = self._done_by(number, task)
            except WorkerLostError as lost:
                if self._closed or not self._replace(number, task, lost):
                    return
            except Exception as error:  # noqa: BLE001 - such as arguments that cannot be sent: who waits must learn of it
                task.future.set_exception(error)
            else:
                self._count(number)
                _settle(task.future, found)

    def _done_by(self, number: int, task: Task) -> Any:
        """Return what a worker makes of a task. Raises `WorkerLostError` where the worker is lost."""
        import ray  # noqa: PLC0415 - an extra, slow to import

        try:
            return ray.get(self.workers[number].do.remote(task.job, task.arguments))
        except ray.exceptions.RayError as error:
            raise WorkerLostError(str(error).strip().partition("\n")[0]) from error

    def _replace(self, number: int, task: Task, lost: WorkerLostError) -> bool:
        """Put a worker in the place of a lost one, and its task back; tell whether that could be done."""
        task.losses += 1
        if task.losses < MOST_LOSSES:
            self._tasks.put([task], first=True)
        else:
            task.future.set_exception(
                PdtrimError(f"{task.losses} workers were lost at the same work, perhaps for want of memory; the last one: {lost}")
            )
        self._say("a worker was lost; what it was at is measured again by another")
        try:
            self.workers[number] = self._start()
            self._check(self.workers[number])
        except Exception as error:  # noqa: BLE001 - whatever Ray raises where it is being shut down
            if not self._closed:
                self._retire(number, error)
            return False
        return True

    def _retire(self, number: int, error: Exception) -> None:
        with self._lock:
            self._working.discard(number)
        self._tasks.retire(number)
        self._say(f"going on with {counted(len(self._working), 'worker')}: {error}")
        if not self._working:
            for task in self._tasks.close():
                if task.begin():
                    task.future.set_exception(PdtrimError(f"no worker is left: {error}"))

    def _count(self, number: int) -> None:
        """Count a job; say once a minute how many each worker has done."""
        with self._lock:
            self._done[number] += 1
            now = time.monotonic()
            if now - self._told_at < MINUTE:
                return
            rates = [
                f"{60 * (done - told) / (now - self._told_at):.0f}" for done, told in zip(self._done, self._told, strict=True)
            ]
            self._told, self._told_at = list(self._done), now
        self._say(f"jobs a minute of each worker: {', '.join(rates)}")


def _settle(future: Future[Any], found: Any) -> None:
    """Give a future what a worker made of its job."""
    if not isinstance(found, Failed):
        future.set_result(found)
        return
    import torch  # noqa: PLC0415 - slow to import

    errors: dict[str, Callable[[str], Exception]] = {
        "user": PdtrimError,
        "plugin": PluginError,
        "memory": torch.OutOfMemoryError,
    }
    make = errors.get(found.kind)
    future.set_exception(JobError(found.traceback) if make is None else make(found.reason))
