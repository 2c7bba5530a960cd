"""The proxy's command line."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.running import serve
from pdtrim_plugins.vllm.proxy.upstream import Limits


def main(words: Sequence[str] | None = None) -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="python -m pdtrim_plugins.vllm.proxy", description="A proxy in front of a pair.")
    parser.add_argument("--prefill", required=True, metavar="URL", help="vLLM with the prefill checkpoint")
    parser.add_argument("--decode", required=True, metavar="URL", help="vLLM with the decode checkpoint")
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
        help="time that the body of a request may take to arrive (default: %(default)g)",
    )  # fmt: skip
    parser.add_argument(
        "--drain-seconds", type=_seconds, default=30.0, metavar="S",
        help="time that open requests have to end after SIGTERM, while new ones get 503 (default: %(default)g)",
    )  # fmt: skip
    options = parser.parse_args(words)
    limits = Limits(options.health_seconds, options.token_seconds, options.request_seconds, options.body_seconds)
    proxy = Proxy(options.prefill, options.decode, storage=options.storage, limits=limits)
    asyncio.run(serve(proxy, options.host, options.port, options.drain_seconds))


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time: give seconds, more than 0")
    return value
