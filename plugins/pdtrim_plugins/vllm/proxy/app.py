"""The proxy of a pair as an application: prefill first, then decode with the K/V that prefill made."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

import aiohttp
from aiohttp import web

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.proxy.handoff import HandOverError, RefusedError, check, for_decode, for_prefill
from pdtrim_plugins.vllm.proxy.incoming import LARGEST_REQUEST, RequestError, object_in, passed_on
from pdtrim_plugins.vllm.proxy.metrics import CONTENT_TYPE, Metrics
from pdtrim_plugins.vllm.proxy.outgoing import begun, error_of, problem_of, refusal, sent, told
from pdtrim_plugins.vllm.proxy.upstream import BrokenError, Limits, Upstream, object_of, shown

PATHS = ("/v1/completions", "/v1/chat/completions")
KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads its API key from. The proxy uses it for its own requests only; clients send theirs."""
TRIAL = {"prompt": [1, 2, 3, 4], "max_tokens": 1, "temperature": 0}
"""A first request that tests the hand-over: healthy servers say nothing about the connection between them."""
TRIAL_SECONDS = 2.0
"""How long a health check of the proxy waits for it."""


DRAINING = "the proxy is stopping and takes no new requests"
CLIENT_LEFT = 499
"""The status that is counted where a client closed its connection."""


class Proxy:
    """The proxy of one pair."""

    def __init__(self, prefill: str, decode: str, *, storage: bool = False, limits: Limits = Limits()) -> None:  # noqa: B008
        self._prefill = Upstream("prefill", prefill, limits)
        self._decode = Upstream("decode", decode, limits)
        self._storage = storage
        self._limits = limits
        self._metrics = Metrics()
        self._begun: dict[int, float] = {}
        self._cut: set[int] = set()
        """Open requests, by `id`: when each began, and those whose stream was cut."""
        self._draining = False
        self._names: dict[str, str] = {}
        self._trial: asyncio.Task[str] | None = None

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
        # A server that is down should be noticed at once; how long answers may take is the servers' limits.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # A connection for each request: the server may close a kept one just as a request is sent on it.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector, auto_decompress=False) as session:
            self._prefill.session = self._decode.session = session
            yield
            for server in (self._prefill, self._decode):
                server.close()
            if self._trial is not None:
                self._trial.cancel()

    async def drain(self, seconds: float) -> None:
        """Refuse new requests, and wait until the open ones have ended, at most so many seconds."""
        self._draining = True
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
        self._begun[id(request)] = asyncio.get_running_loop().time()
        self._metrics.open += 1
        try:
            response = await self._generate(request)
            status = 502 if id(request) in self._cut else response.status
        except RequestError as error:
            status = error.status
            raise
        finally:
            self._metrics.open -= 1
            del self._begun[id(request)]
            self._cut.discard(id(request))
            self._metrics.requests[status] += 1
        return response

    def _first(self, request: web.Request) -> None:
        self._metrics.first_token(asyncio.get_running_loop().time() - self._begun[id(request)])

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        body = await object_in(request, self._limits.body)
        headers = passed_on(request)
        try:
            check(body)
        except RefusedError as error:
            raise RequestError(400, f"{error}") from None
        try:
            model = await self._model_of(body)
        except PdtrimError as error:
            return error_of(503, f"{error}")
        if model is None:
            return error_of(404, f"the model '{shown(body['model'].encode())}' does not exist; there is {', '.join(self._names)}")
        answer = await self._prefilled(request.path, for_prefill(body, model, storage=self._storage), headers)
        if isinstance(answer, web.Response):
            return answer
        try:
            body = for_decode(body, model, answer, storage=self._storage)
        except HandOverError as error:
            return error_of(502, f"{error}")
        self._metrics.handovers += 1
        return await self._decoded(request, body, headers)

    async def _prefilled(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | web.Response:
        """Return prefill's answer, or the response to the client where there is none."""
        try:
            async with self._prefill.asked(path, body, headers) as answer:
                return await answer.object() if answer.status == 200 else await refusal("prefill", answer)
        except BrokenError as error:
            self._forget()
            self._metrics.failures["prefill"] += 1
            return error_of(502, f"prefill did not answer: {error}")

    async def _decoded(self, request: web.Request, body: Mapping[str, Any], headers: Mapping[str, str]) -> web.StreamResponse:
        """Pass decode's answer on, a stream as it comes."""
        response: web.StreamResponse | None = None
        try:
            async with self._decode.asked(request.path, body, headers) as answer:
                if answer.status != 200:
                    return await refusal("decode", answer)
                if not body.get("stream"):
                    found = await answer.object()
                    if not isinstance(found.get("choices"), list):
                        raise BrokenError("it has no choices")
                    self._first(request)
                    self._metrics.tokens += tokens_in(found) or 0
                    return web.json_response(found)
                events, tokens = 0, None
                async for data, event in answer.events():
                    if response is None:
                        self._first(request)
                        response = await begun(request)
                    await sent(response, data)
                    events += bool(event.get("choices"))
                    tokens = tokens_in(event) or tokens
                self._metrics.tokens += events if tokens is None else tokens
            response = response or await begun(request)
            await sent(response, b"[DONE]")
        except BrokenError as error:
            self._forget()
            self._metrics.failures["decode"] += 1
            message = f"decode did not answer to the end: {error}"
            if response is None:
                return error_of(502, message)
            self._cut.add(id(request))
            # The client has part of the answer; an event says that it ended with an error, and [DONE] is not sent.
            await sent(response, json.dumps(problem_of(502, message)).encode())
        await response.write_eof()
        return response

    async def _model_of(self, body: Mapping[str, Any]) -> str | None:
        """Return the model name for requests to both servers, None for a model that they do not have."""
        if not self._names:
            self._names = await self._common_names()
        model = body.get("model")
        if model is None:
            return next(iter(self._names.values()))
        return model if model in self._names.values() else self._names.get(model)

    async def _common_names(self) -> dict[str, str]:
        """Return each model's name with its name of the form MODEL@PLAN, which both servers must have."""
        prefill, decode = await self._names_at(self._prefill), await self._names_at(self._decode)
        both = [name for name in prefill if name in decode and "@" in name]
        if not both:
            raise PdtrimError(
                f"prefill serves {', '.join(prefill)} and decode {', '.join(decode)}: they need the same MODEL@PLAN as second "
                "--served-model-name, or have different plans"
            )
        return {name.rpartition("@")[0]: name for name in both}

    async def _names_at(self, server: Upstream) -> list[str]:
        async with server.asked("/v1/models", headers=_own_key()) as answer:
            if answer.status != 200:
                raise PdtrimError(
                    f"{server.stage} does not say which models it has ({answer.status}); has it an API key? Set {KEY}"
                )
            content = await answer.content()
        names = [model.get("id") if isinstance(model, dict) else None for model in _list_in(object_of(content).get("data"))]
        if not names or not all(isinstance(name, str) for name in names):
            raise PdtrimError(f"{server.stage} does not say which models it has, but {shown(content)}")
        return [f"{name}" for name in names]

    async def _models(self, request: web.Request) -> web.Response:
        try:
            async with self._decode.asked("/v1/models", headers=passed_on(request)) as answer:
                if answer.status != 200:
                    return await refusal("decode", answer)
                return web.json_response(await answer.object())
        except BrokenError as error:
            return error_of(503, f"decode did not answer: {error}")

    async def _model(self, request: web.Request) -> web.Response:
        response = await self._models(request)
        name = request.match_info["name"]
        if response.status != 200:
            return response
        for model in _list_in(object_of(_bytes(response)).get("data")):
            if isinstance(model, dict) and model.get("id") == name:
                return web.json_response(model)
        return error_of(404, f"the model '{shown(name.encode())}' does not exist")

    async def _version(self, request: web.Request) -> web.Response:
        return await self._passed("/version", None, passed_on(request), {"pdtrim_core": version("pdtrim-core")})

    async def _tokenize(self, request: web.Request) -> web.Response:
        return await self._passed("/tokenize", await object_in(request, self._limits.body), passed_on(request), {})

    async def _passed(
        self, path: str, body: Mapping[str, Any] | None, headers: Mapping[str, str], more: Mapping[str, Any]
    ) -> web.Response:
        """Ask decode, which has the whole tokenizer, and return its answer with something more."""
        try:
            async with self._decode.asked(path, body, headers) as answer:
                if answer.status != 200:
                    return await refusal("decode", answer)
                return web.json_response({**await answer.object(), **more})
        except BrokenError as error:
            return error_of(502, f"decode did not answer: {error}")

    async def _counts(self, _: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text().encode(), headers={"Content-Type": CONTENT_TYPE})

    async def _health(self, _: web.Request) -> web.Response:
        if self._draining:
            return error_of(503, DRAINING)
        try:
            for server in (self._prefill, self._decode):
                async with server.asked("/health") as answer:
                    if answer.status != 200:
                        raise PdtrimError(f"{server.stage} is not healthy ({answer.status})")
            self._names = await self._common_names()
        except PdtrimError as error:
            # When it is back it may be another process, which has not passed a trial yet.
            self._forget()
            return error_of(503, f"{error}")
        problem = await self._tried()
        return error_of(503, problem) if problem else web.json_response({"models": self._names})

    async def _tried(self) -> str:
        """Return why prompts cannot be handed over, empty once one was; a failed trial is repeated at the next check."""
        # A task of its own: the client of a health check may disconnect before the trial ends.
        trial = self._trial = self._trial or asyncio.create_task(self._try(next(iter(self._names.values()))))
        done, _ = await asyncio.wait({trial}, timeout=TRIAL_SECONDS)
        if not done:
            return "a first prompt is being handed over"
        # Another health check may have started the next trial.
        if trial.result() and self._trial is trial:
            self._trial = None
        return trial.result()

    async def _try(self, model: str) -> str:
        """Hand a first prompt over, and return the error, empty if there is none."""
        answer = await self._prefilled(PATHS[0], for_prefill(TRIAL, model, storage=self._storage), _own_key())
        if isinstance(answer, web.Response):
            return f"prefill took no first prompt: {answer.text}"
        try:
            body = for_decode(TRIAL, model, answer, storage=self._storage)
            async with self._decode.asked(PATHS[0], body, _own_key()) as last:
                return "" if last.status == 200 else f"decode took no first prompt: {shown(await last.content())}"
        except (BrokenError, HandOverError) as error:
            return f"no first prompt came to decode: {error}"

    def _forget(self) -> None:
        """Forget the names and the trial, because a server may have been replaced."""
        self._names.clear()
        self._trial = None


def _own_key() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def tokens_in(answer: Mapping[str, Any]) -> int | None:
    """Return how many tokens an answer says that it generated, None where it does not say."""
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else None


def _bytes(response: web.Response) -> bytes:
    assert isinstance(response.body, bytes)
    return response.body


def _list_in(found: object) -> list[Any]:
    return found if isinstance(found, list) else []
