"""Connections without a request: closed after a while, so that slow or silent clients do not use them up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

CHECKS = 4
"""How often in the time that they have they are looked at."""


class Connections:
    """Closes connections over which no whole head of a request comes for so many seconds; `noted` is a middleware."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._busy: set[asyncio.Transport] = set()
        self._since: dict[asyncio.Transport, float] = {}

    @property
    def noted(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        """The middleware that notes which connections have a request."""

        @web.middleware
        async def note(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            transport = request.transport
            if transport is None:
                return await handler(request)
            self._busy.add(transport)
            try:
                return await handler(request)
            finally:
                self._busy.discard(transport)
                self._since.pop(transport, None)

        return note

    async def watch(self, server: web.Server) -> None:
        """Close those that are idle for too long, until cancelled."""
        while True:
            await asyncio.sleep(self._seconds / CHECKS)
            now = asyncio.get_running_loop().time()
            idle = [one.transport for one in server.connections if one.transport and one.transport not in self._busy]
            self._since = {transport: self._since.get(transport, now) for transport in idle}
            for transport, since in self._since.items():
                if now - since >= self._seconds:
                    transport.abort()
