"""The proxy's command line."""

from __future__ import annotations

import argparse
import asyncio
import resource
from collections.abc import Sequence

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.running import serve
from pdtrim_plugins.vllm.proxy.upstream import Limits

FILES = 2**16


def options() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(prog="python -m pdtrim_plugins.vllm.proxy", description="A proxy in front of a pair.")
    for stage in ("prefill", "decode"):
        parser.add_argument(
            f"--{stage}", required=True, action="append", metavar="URL",
            help=f"vLLM with the {stage} checkpoint; given several times, these take turns",
        )  # fmt: skip
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--storage", action="store_true", help="K/V go through files (the example connector)")
    limits = Limits()
    parser.add_argument(
        "--health-seconds", type=_seconds, default=limits.health, metavar="S",
        help="a server that is silent about its health for so long is gone; its requests get an error (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--token-seconds", type=_seconds, default=limits.token, metavar="S",
        help="time between two pieces of a stream at most (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--request-seconds", type=_seconds, default=limits.whole, metavar="S",
        help="time that each server may take for a request at most (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--body-seconds", type=_seconds, default=limits.body, metavar="S",
        help="time that the head of a request may take to arrive, and its body (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--at-once", type=_count, default=limits.at_once, metavar="N",
        help="prompts that are with the servers at most, while others wait (default: %(default)d)",
    )  # fmt: skip
    parser.add_argument(
        "--answer-tokens", type=_count, metavar="N",
        help="tokens for which a request has room at decode that does not say how long its answer may be (default: all that are "
        "left of the longest text)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", type=_seconds, default=30.0, metavar="S",
        help="time that open requests have to end after SIGTERM, while new ones get 503 (default: %(default)g)",
    )  # fmt: skip
    return parser


def main(words: Sequence[str] | None = None) -> None:
    """Serve until stopped."""
    given = options().parse_args(words)
    limits = Limits(
        given.health_seconds,
        given.token_seconds,
        given.request_seconds,
        given.body_seconds,
        given.at_once,
        given.answer_tokens,
    )
    proxy = Proxy(given.prefill, given.decode, storage=given.storage, limits=limits)
    _want_files()
    asyncio.run(serve(proxy, given.host, given.port, given.drain_seconds, given.body_seconds))


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time: give seconds, more than 0")
    return value


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no such number: give 1 or more")
    return int(text)


def _want_files() -> None:
    """Take as many file descriptors as the system lets us: each request is two connections, and 1024 are soon used up."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (FILES if most == resource.RLIM_INFINITY else min(most, FILES), most))
