"""What the proxy counts, in Prometheus' text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper ends in seconds of what the time to the first token is counted in; a last one takes all."""


class Metrics:
    """Counters of one proxy."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        """Generating requests that ended, by the status that the client got; a stream that was cut counts as 502."""
        self.open = 0
        self.handovers = 0
        self.failures: Counter[str] = Counter()
        self.tokens = 0
        self._seconds: list[float] = [0.0] * (len(BUCKETS) + 1)
        self._total = 0.0

    def first_token(self, seconds: float) -> None:
        """Count the time to a first token; of an answer that is no stream, to all of it."""
        self._seconds[sum(seconds > end for end in BUCKETS)] += 1
        self._total += seconds

    def text(self, well: Mapping[str, int], waiting: int) -> str:
        """Return all of them as a scraper reads them.

        `well` is how many servers of each stage get requests, `waiting` how many requests wait for room at decode.
        """
        return "\n".join(self._lines(well, waiting)) + "\n"

    def _lines(self, well: Mapping[str, int], waiting: int) -> Iterator[str]:
        yield from _head("requests_total", "counter", "Completions and chats that ended, by the status that the client got.")
        yield from (f'pdtrim_proxy_requests_total{{status="{code}"}} {n}' for code, n in sorted(self.requests.items()))
        yield from _head("requests_open", "gauge", "Completions and chats that are being answered.")
        yield f"pdtrim_proxy_requests_open {self.open}"
        yield from _head("handovers_total", "counter", "Prompts whose K/V prefill has ready and decode was told of.")
        yield f"pdtrim_proxy_handovers_total {self.handovers}"
        yield from _head("failures_total", "counter", "Requests that ended because a server failed, by the server.")
        yield from (f'pdtrim_proxy_failures_total{{server="{stage}"}} {self.failures[stage]}' for stage in ("prefill", "decode"))
        yield from _head("servers_well", "gauge", "Servers that get requests, by their stage.")
        yield from (f'pdtrim_proxy_servers_well{{server="{stage}"}} {number}' for stage, number in well.items())
        yield from _head("waiting_for_room", "gauge", "Prompts whose K/V prefill has ready, and decode has no room for yet.")
        yield f"pdtrim_proxy_waiting_for_room {waiting}"
        yield from _head("tokens_total", "counter", "Generated tokens by the servers' usage; in streams without it, events.")
        yield f"pdtrim_proxy_tokens_total {self.tokens}"
        yield from _head(
            "first_token_seconds", "histogram", "Time to the first token; to the whole answer where it is no stream."
        )
        count = 0.0
        for end, number in zip((*BUCKETS, "+Inf"), self._seconds, strict=True):
            count += number
            yield f'pdtrim_proxy_first_token_seconds_bucket{{le="{end}"}} {count:g}'
        yield f"pdtrim_proxy_first_token_seconds_sum {self._total}"
        yield f"pdtrim_proxy_first_token_seconds_count {count:g}"


def _head(name: str, kind: str, told: str) -> tuple[str, str]:
    return f"# HELP pdtrim_proxy_{name} {told}", f"# TYPE pdtrim_proxy_{name} {kind}"
