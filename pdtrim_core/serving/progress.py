"""What a server does until it is well, by what it writes into its log."""

from __future__ import annotations

from collections.abc import Iterator

SIGNS = (
    ("Starting to load model", "loads the model"),
    ("Model loading took", "compiles and measures its memory"),
    ("Loading weights took", "compiles and measures its memory"),
    ("Warming up model", "compiles and warms up"),
    ("Capturing CUDA graphs", "captures graphs"),
    ("Graph capturing finished", "warms up"),
    ("Starting vLLM server", "begins to answer"),
)
"""Words of vLLM's log, and what it does from then on; the last one that a log has counts."""
STARTS = "starts"
AGAIN_SECONDS = 30.0
"""A wait that goes on is told again after so long."""


class Progress:
    """What one server was said to do, and when."""

    def __init__(self, begun: float) -> None:
        self._begun = begun
        self._doing = STARTS
        self._since = self._told = begun

    def news(self, log: str, problem: str, now: float) -> Iterator[str]:
        """Yield what has changed since it was asked last, or what goes on for long."""
        doing = doing_in(log)
        if doing != self._doing:
            yield f"{doing}, {now - self._begun:.0f} s after its start ({self._doing}: {now - self._since:.0f} s)"
            self._doing, self._since, self._told = doing, now, now
        elif now - self._told >= AGAIN_SECONDS:
            yield f"{doing} for {now - self._since:.0f} s{f'; {problem}' if problem else ''}"
            self._told = now


def doing_in(log: str) -> str:
    """Return what a server with this log does."""
    places = [(log.rfind(sign), doing) for sign, doing in SIGNS]
    place, doing = max(places, key=lambda found: found[0])
    return doing if place >= 0 else STARTS
