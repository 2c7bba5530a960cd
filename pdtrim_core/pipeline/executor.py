"""Where the independent work of a run is done: in this process, or by workers. This is all that a run knows of workers.

A job is a function of a module: it is given the cache of the process that it runs in, in which models stay open from one job to
the next, and arguments that can be pickled. A run without an executor does everything itself.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
Job = Callable[..., T]
"""`job(cache, *arguments)`."""


class Parcel(Protocol):
    """Bytes that many jobs are given and that travel to each worker once; calling it there gives them."""

    def __call__(self) -> bytes:
        """Return the bytes."""


class Executor(Protocol):
    """Workers that carry out jobs; a job whose worker is lost is carried out again by another.

    A `PdtrimError` of a job, and that a device has no memory left, come out of its future as they would out of a call.
    """

    @property
    def count(self) -> int:
        """The number of workers."""

    @property
    def threads(self) -> int:
        """The CPU threads that each worker has."""

    def submit(self, job: Job[T], *arguments: Any, near: object = None) -> Future[T]:
        """Have a job done by one worker. Jobs that are `near` the same thing go to the same worker, as long as it has time."""

    def everywhere(self, job: Job[T], *arguments: Any) -> list[Future[T]]:
        """Have a job done by every worker."""

    def parcel(self, content: bytes) -> Parcel:
        """Return bytes in a form that is cheap to give to many jobs."""
