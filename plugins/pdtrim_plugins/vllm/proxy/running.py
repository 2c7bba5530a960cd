"""The proxy as a process: it listens until a signal, and lets open requests end."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.connections import Connections
from pdtrim_plugins.vllm.proxy.incoming import RUNNER

BACKLOG = 2048
"""Connections that the system holds until the proxy has time for them."""
CUT_SECONDS = 2.0
"""How long requests that are ended may take to tell their clients."""


async def serve(proxy: Proxy, host: str, port: int, drain_seconds: float, head_seconds: float = 60.0) -> None:
    """Serve until SIGTERM, which lets open requests end, or SIGINT or a second SIGTERM, which ends them with an error.

    A connection whose request's head does not arrive within `head_seconds` is closed.
    """
    draining, stopped = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stopped.set)

    def end() -> None:
        (stopped if draining.is_set() else draining).set()

    loop.add_signal_handler(signal.SIGTERM, end)
    connections = Connections(head_seconds)
    app = proxy.app()
    app.middlewares.append(connections.noted)
    runner = web.AppRunner(app, handler_cancellation=True, **RUNNER, shutdown_timeout=1.0)
    await runner.setup()
    assert runner.server is not None
    watching = asyncio.create_task(connections.watch(runner.server))
    try:
        await web.TCPSite(runner, host, port, backlog=BACKLOG).start()

        async def drained() -> None:
            await draining.wait()
            await proxy.drain(drain_seconds)

        ends = {asyncio.create_task(drained()), asyncio.create_task(_until(stopped))}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
        await proxy.cut(CUT_SECONDS)
    finally:
        watching.cancel()
        await runner.cleanup()


async def _until(event: asyncio.Event) -> None:
    await event.wait()
