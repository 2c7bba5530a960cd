"""A line at least every half minute, for a log in which no bar moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

SECONDS = 30.0
"""The longest time without a line."""


class Heartbeat:
    """Calls `still` whenever nothing was said for `seconds`, from a thread of its own, as long as someone is inside.

    It may be entered again inside itself.
    """

    def __init__(self, still: Callable[[], None], seconds: float = SECONDS) -> None:
        self._still = still
        self._seconds = seconds
        self._inside = 0
        self._last = time.monotonic()
        self._over = threading.Event()

    @property
    def inside(self) -> bool:
        """Whether someone is inside."""
        return self._inside > 0

    def said(self) -> None:
        """Take note that something was said."""
        self._last = time.monotonic()

    def __enter__(self) -> Self:
        self._inside += 1
        if self._inside == 1:
            self.said()
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._inside -= 1
        if self._inside == 0:
            self._over.set()

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(max(0.0, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self.said()
                self._still()
