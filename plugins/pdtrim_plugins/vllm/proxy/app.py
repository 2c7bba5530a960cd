"""The proxy of a pair as an application: what it answers at which path."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import aiohttp
from aiohttp import web

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.proxy.generation import Asked, Generation
from pdtrim_plugins.vllm.proxy.handoff import RefusedError, check
from pdtrim_plugins.vllm.proxy.incoming import LARGEST_REQUEST, RequestError, object_in, passed_on
from pdtrim_plugins.vllm.proxy.metrics import CONTENT_TYPE, Metrics
from pdtrim_plugins.vllm.proxy.outgoing import RefusalError, error_of, refusal, told
from pdtrim_plugins.vllm.proxy.pair import Pair, list_in
from pdtrim_plugins.vllm.proxy.parts import parts_of
from pdtrim_plugins.vllm.proxy.trial import Trial
from pdtrim_plugins.vllm.proxy.upstream import BrokenError, Limits, shown

PATHS = ("/v1/completions", "/v1/chat/completions")
DRAINING = "the proxy is stopping and takes no new requests"
STOPPED = "the proxy was stopped"
CLIENT_LEFT = 499
"""The status that is counted where a client closed its connection."""


class Proxy:
    """The proxy of one pair, with one prefill and decode server or several."""

    def __init__(
        self,
        prefill: Sequence[str],
        decode: Sequence[str],
        *,
        storage: bool = False,
        limits: Limits = Limits(),  # noqa: B008
    ) -> None:
        self._pair = Pair(prefill, decode, limits)
        self._limits = limits
        self._metrics = Metrics()
        self._generation = Generation(self._pair, self._metrics, storage=storage, limits=limits)
        self._trial = Trial(self._pair, storage=storage)
        self._draining = False

    def app(self) -> web.Application:
        """Return the application that serves the proxy; run it with `incoming.RUNNER`."""
        app = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[told])
        app.add_routes([web.post(path, self._counted) for path in PATHS])
        app.add_routes([web.get("/v1/models", self._models), web.get("/health", self._health)])
        app.add_routes([web.get("/v1/models/{name:.+}", self._model), web.get("/version", self._version)])
        app.add_routes([web.post("/tokenize", self._tokenize), web.get("/metrics", self._counts)])
        app.cleanup_ctx.append(self._connections)
        return app

    async def _connections(self, _: web.Application) -> Any:
        # How long anything may take is the servers' limits; one that does not even accept connections is silent about its health.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=None)
        # A connection for each request: the server may close a kept one just as a request is sent on it.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
            for server in self._pair.servers:
                server.session = session
            yield
            self._pair.close()
            self._trial.close()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until the open ones have ended, at most so many seconds."""
        self._draining = True
        await self._ended(seconds)

    async def cut(self, seconds: float) -> None:
        """End the open requests, each with an error that says so, and wait until they have, at most so many seconds."""
        self._draining = True
        self._pair.cut(STOPPED)
        await self._ended(seconds)

    async def _ended(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self._metrics.open:  # noqa: ASYNC110 - a count, which ends on its own
                    await asyncio.sleep(0.05)

    async def _counted(self, request: web.Request) -> web.StreamResponse:
        if self._draining:
            refused = error_of(503, DRAINING)
            refused.force_close()
            return refused
        status = CLIENT_LEFT
        self._metrics.open += 1
        try:
            asked = await self._asked(request)
            response = await self._generation.answer(asked)
            status = 502 if asked.cut else response.status
        except (RequestError, RefusalError) as error:
            status = error.status
            raise
        finally:
            self._metrics.open -= 1
            self._metrics.requests[status] += 1
        return response

    async def _asked(self, request: web.Request) -> Asked:
        """Return what a client asks. Raises `RequestError`."""
        began = asyncio.get_running_loop().time()
        body = await object_in(request, self._limits.body)
        headers = passed_on(request)
        try:
            check(body)
            parts = parts_of(body)
        except RefusedError as error:
            raise RequestError(400, f"{error}") from None
        try:
            names = await self._pair.names()
        except PdtrimError as error:
            raise RequestError(503, f"{error}") from None
        wanted = body.get("model")
        known = {**names, **{name: name for name in names.values()}}
        model = next(iter(names.values())) if wanted is None else known.get(wanted)
        if model is None:
            raise RequestError(404, f"the model '{shown(str(wanted).encode())}' does not exist; there is {', '.join(names)}")
        options = body.get("stream_options")
        usage = isinstance(options, dict) and options.get("include_usage") is True
        return Asked(request, parts, model, headers, usage, began)

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(await self._of_decode("/v1/models", None, passed_on(request)))

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        for model in list_in((await self._of_decode("/v1/models", None, passed_on(request))).get("data")):
            if isinstance(model, dict) and model.get("id") == name:
                return web.json_response(model)
        return error_of(404, f"the model '{shown(name.encode())}' does not exist")

    async def _version(self, request: web.Request) -> web.Response:
        told = await self._of_decode("/version", None, passed_on(request))
        return web.json_response({**told, "pdtrim_core": version("pdtrim-core")})

    async def _tokenize(self, request: web.Request) -> web.Response:
        body = await object_in(request, self._limits.body)
        return web.json_response(await self._of_decode("/tokenize", body, passed_on(request)))

    async def _of_decode(self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str]) -> dict[str, Any]:
        """Return what a decode server answers, which has the whole tokenizer."""
        try:
            await self._pair.names()
            server = self._pair.next("decode")
        except PdtrimError as error:
            raise RequestError(503, f"{error}") from None
        try:
            async with server.asked(path, body, headers) as answer:
                if answer.status != 200:
                    raise await refusal("decode", answer)
                return await answer.object()
        except BrokenError as error:
            raise RequestError(502, f"decode did not answer: {error}") from None

    async def _counts(self, _: web.Request) -> web.Response:
        well = {stage: len(self._pair.well(stage)) for stage in self._pair.stages}
        waiting = sum(server.room.waiting for server in self._pair.servers)
        return web.Response(body=self._metrics.text(well, waiting).encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        if self._draining:
            return error_of(503, DRAINING)
        try:
            names = await self._pair.names(fresh=True)
        except PdtrimError as error:
            return error_of(503, f"{error}")
        problem = await self._trial.problem(next(iter(names.values())))
        return error_of(503, problem) if problem else web.json_response({"models": names})
