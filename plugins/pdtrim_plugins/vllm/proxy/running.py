"""The proxy as a process: it listens until a signal, and lets open requests end."""

from __future__ import annotations

import asyncio
import signal

from aiohttp import web

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.incoming import RUNNER


async def serve(proxy: Proxy, host: str, port: int, drain_seconds: float) -> None:
    """Serve until SIGTERM, which lets open requests end, or SIGINT or a second SIGTERM, which does not."""
    draining, stopped = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, stopped.set)

    def end() -> None:
        (stopped if draining.is_set() else draining).set()

    loop.add_signal_handler(signal.SIGTERM, end)
    runner = web.AppRunner(proxy.app(), handler_cancellation=True, **RUNNER, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()

        async def drained() -> None:
            await draining.wait()
            await proxy.drain(drain_seconds)

        ends = {asyncio.create_task(drained()), asyncio.create_task(_until(stopped))}
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        for task in ends:
            task.cancel()
    finally:
        await runner.cleanup()


async def _until(event: asyncio.Event) -> None:
    await event.wait()
