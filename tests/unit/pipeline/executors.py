"""Workers that are none: jobs are done where they are asked for, each with the cache of a worker, and pickled on their way."""

from __future__ import annotations

import pickle
from concurrent.futures import Future
from typing import Any, TypeVar

from pdtrim_core.pipeline.executor import Job
from pdtrim_core.pipeline.run_cache import RunCache

T = TypeVar("T")


class Bytes:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def __call__(self) -> bytes:
        return self.content


class InTurn:
    """So many workers of one thread, which get jobs in turn.

    `asked` are the jobs with their arguments, `inside` is true during one.
    """

    threads = 1

    def __init__(self, count: int = 2) -> None:
        self.count = count
        self.inside = False
        self.asked: list[tuple[Any, ...]] = []
        self._caches = [RunCache() for _ in range(count)]

    def submit(self, job: Job[T], *arguments: Any, near: object = None) -> Future[T]:
        self.asked.append((job, *arguments))
        return self._done(self._caches[len(self.asked) % self.count], job, arguments)

    def everywhere(self, job: Job[T], *arguments: Any) -> list[Future[T]]:
        return [self._done(cache, job, arguments) for cache in self._caches]

    def parcel(self, content: bytes) -> Bytes:
        return Bytes(content)

    def _done(self, cache: RunCache, job: Job[T], arguments: tuple[Any, ...]) -> Future[T]:
        future: Future[T] = Future()
        sent_job, sent = pickle.loads(pickle.dumps((job, arguments)))
        self.inside = True
        try:
            future.set_result(pickle.loads(pickle.dumps(sent_job(cache, *sent))))
        except Exception as error:  # noqa: BLE001 - as a worker does
            future.set_exception(error)
        finally:
            self.inside = False
        return future
