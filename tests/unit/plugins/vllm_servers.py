"""Servers that only pretend to be vLLM, and a proxy in front of two of them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.incoming import RUNNER

PARAMS = {
    "do_remote_prefill": True,
    "remote_block_ids": [[1]],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "h",
    "remote_port": 1,
}
ASKED = {"model": "m", "prompt": "Hello", "max_tokens": 3}

Client = TestClient[Any, Any]


class Fake:
    """A server that notes what it is asked, and answers what a test wants.

    `answer` is a status with data, or makes them of a request; `content` are other bytes. `hangs` tells where it does: before it
    answers, or in a stream; `frozen` keeps it from answering about its health too. `broken` ends a stream in the middle, and
    `undone` before it says that it is done.
    """

    def __init__(self, *, plan: str = "1") -> None:
        self.names = ["m", f"m@{plan}"]
        self.models: bytes | None = None
        self.asked: list[dict[str, Any]] = []
        self.headers: list[Any] = []
        self.answer: Any = (200, {"choices": [], "kv_transfer_params": PARAMS, "usage": {"completion_tokens": 7}})
        self.content: bytes | None = None
        self.events: Callable[[dict[str, Any]], list[Any]] = lambda _: [
            {"choices": [{"text": "one"}]},
            {"choices": [{"text": "two"}]},
        ]
        self.hangs = ""
        self.broken = self.undone = self.frozen = False
        self.seconds = self.pause = 0.0
        """How long an answer takes, and how long lies between two events of a stream."""
        self.health = 200
        self.key = ""
        self.metrics, self.longest = b"", 9
        self.open = self.most = 0
        """Requests that are being answered, and the most of them at once."""
        self.waiting = asyncio.Event()

    def server(self, port: int | None = None) -> TestServer:
        app = web.Application(client_max_size=2**30)
        app.add_routes(
            [web.get("/health", self._health), web.get("/v1/models", self._models), web.get("/version", self._version)]
        )
        app.add_routes([web.get("/metrics", self._metrics)])
        app.add_routes([web.post(f"/v1/{path}", self._generate) for path in ("completions", "chat/completions")])
        app.add_routes([web.post("/tokenize", self._tokenize)])
        return TestServer(app, port=port)

    async def _health(self, _: web.Request) -> web.Response:
        if self.frozen:
            await asyncio.sleep(60)
        return web.Response(status=self.health)

    async def _models(self, request: web.Request) -> web.Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.models is not None:
            return web.Response(body=self.models, content_type="application/json")
        return web.json_response({"data": [{"id": name, "max_model_len": self.longest} for name in self.names]})

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(body=self.metrics)

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "0.32"})

    async def _tokenize(self, request: web.Request) -> web.Response:
        return web.json_response({"tokens": [1, 2], "asked": await request.json()})

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        asked = json.loads(await request.read())
        self.asked.append(asked)
        self.headers.append(request.headers)
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            return await self._answer(request, asked)
        finally:
            self.open -= 1

    async def _answer(self, request: web.Request, asked: dict[str, Any]) -> web.StreamResponse:
        if self.hangs == "before":
            self.waiting.set()
            await asyncio.sleep(60)
        await asyncio.sleep(self.seconds)
        status, data = self.answer(asked) if callable(self.answer) else self.answer
        if not asked.get("stream") or status != 200:
            if self.content is not None:
                return web.Response(body=self.content, content_type="application/json")
            return web.json_response(data, status=status)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for event in self.events(asked):
            await response.write(f"data: {json.dumps(event)}\n\n".encode())
            await asyncio.sleep(self.pause)
            if self.broken:
                assert request.transport is not None
                request.transport.abort()
                return response
            if self.hangs == "stream":
                await response.write(b'data: {"choi')
                self.waiting.set()
                await asyncio.sleep(60)
        if not self.undone:
            await response.write(b"data: [DONE]\n\n")
        return response


@asynccontextmanager
async def proxied(prefill: Fake, decode: Fake, **options: Any) -> AsyncIterator[tuple[Client, dict[str, TestServer]]]:
    """Lend a client of a proxy in front of two servers, and the servers; a test may close or replace one of these."""
    servers = {"prefill": prefill.server(), "decode": decode.server()}
    for server in servers.values():
        await server.start_server(shutdown_timeout=0.0)
    proxy = TestServer(Proxy(*([str(server.make_url(""))] for server in servers.values()), **options).app())
    await proxy.start_server(**RUNNER)
    try:
        async with TestClient(proxy) as client:
            yield client, servers
    finally:
        for server in servers.values():
            await server.close()
