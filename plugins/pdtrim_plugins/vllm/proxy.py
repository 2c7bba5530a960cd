"""A small proxy in front of a pair: prefill first, then decode with the K/V that prefill made.

    python -m pdtrim_plugins.vllm.proxy --prefill http://HOST:PORT --decode http://HOST:PORT [--host HOST] [--port PORT]

Both servers have a second model name, MODEL@PLAN, which requests use, so that a server of another plan answers 404. Any failure
between the two is an error for the client: no request reaches decode without K/V from prefill.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.handoff import HandOverError, RefusedError, check, for_decode, for_prefill

PATHS = ("/v1/completions", "/v1/chat/completions")
LARGEST_REQUEST = 64 * 2**20
HEADERS = ("Authorization", "X-Request-Id")
"""Headers of a client that are passed on."""
KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads its API key from. The proxy uses it for its own requests only; clients send theirs."""
TRIAL = {"prompt": [1, 2, 3, 4], "max_tokens": 1, "temperature": 0}
"""A first request that tests the hand-over: healthy servers say nothing about the connection between them."""
TRIAL_SECONDS = 2.0
"""How long a health check of the proxy waits for it."""
UNREACHABLE = (aiohttp.ClientError, asyncio.TimeoutError, OSError)


class Proxy:
    """The proxy of one pair."""

    def __init__(self, prefill: str, decode: str, *, storage: bool = False) -> None:
        self._urls = {"prefill": prefill.rstrip("/"), "decode": decode.rstrip("/")}
        self._storage = storage
        self._session: aiohttp.ClientSession | None = None
        self._names: dict[str, str] = {}
        self._trial: asyncio.Task[str] | None = None

    def app(self) -> web.Application:
        """Return the application that serves the proxy."""
        app = web.Application(client_max_size=LARGEST_REQUEST)
        app.add_routes([web.post(path, self._generate) for path in PATHS])
        app.add_routes([web.get("/v1/models", self._models), web.get("/health", self._health)])
        app.cleanup_ctx.append(self._connections)
        return app

    async def _connections(self, _: web.Application) -> Any:
        # Answers may take any time; a server that is down should be noticed at once.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        # A connection for each request: the server may close a kept one just as a request is sent on it.
        connector = aiohttp.TCPConnector(limit=0, force_close=True)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as self._session:
            yield
            if self._trial is not None:
                self._trial.cancel()

    @property
    def _client(self) -> aiohttp.ClientSession:
        assert self._session is not None
        return self._session

    async def _generate(self, request: web.Request) -> web.StreamResponse:
        try:
            body = await request.json()
            if not isinstance(body, dict):
                raise RefusedError("a request is a JSON object")
            check(body)
            model = await self._model_of(body)
        except (ValueError, RefusedError) as error:
            return _error(400, f"{error}")
        except (*UNREACHABLE, PdtrimError) as error:
            return _error(503, _words(error))
        if model is None:
            return _error(404, f"the model '{body.get('model')}' does not exist; there is {', '.join(self._names)}")
        headers = _passed_on(request)
        answer = await self._prefill(request.path, for_prefill(body, model, storage=self._storage), headers)
        if isinstance(answer, web.Response):
            return answer
        try:
            body = for_decode(body, model, answer, storage=self._storage)
        except HandOverError as error:
            return _error(502, f"{error}")
        return await self._decode(request, body, headers)

    async def _prefill(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | web.Response:
        """Return prefill's answer, or the response to the client where there is none."""
        try:
            async with self._client.post(self._urls["prefill"] + path, json=body, headers=headers) as answer:
                if answer.status != 200:
                    return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
                found: dict[str, Any] = await answer.json()
                return found
        except (*UNREACHABLE, ValueError) as error:
            self._forget()
            return _error(502, f"prefill did not answer: {_words(error)}")

    async def _decode(self, request: web.Request, body: Mapping[str, Any], headers: Mapping[str, str]) -> web.StreamResponse:
        """Pass decode's answer on as it comes."""
        response: web.StreamResponse | None = None
        try:
            async with self._client.post(self._urls["decode"] + request.path, json=body, headers=headers) as answer:
                if not body.get("stream") or answer.status != 200:
                    return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
                response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
                await response.prepare(request)
                async for chunk in answer.content.iter_any():
                    await response.write(chunk)
        except UNREACHABLE as error:
            self._forget()
            message = f"decode did not answer to the end: {_words(error)}"
            if response is None:
                return _error(502, message)
            if request.transport is not None and not request.transport.is_closing():
                # The client has part of the answer; an event says that it ended with an error, and [DONE] is not sent.
                await response.write(f"data: {json.dumps(_problem(502, message))}\n\n".encode())
        assert response is not None
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
        prefill, decode = await self._names_at("prefill"), await self._names_at("decode")
        both = [name for name in prefill if name in decode and "@" in name]
        if not both:
            raise PdtrimError(
                f"prefill serves {', '.join(prefill)} and decode {', '.join(decode)}: they need the same MODEL@PLAN as second "
                "--served-model-name, or have different plans"
            )
        return {name.rpartition("@")[0]: name for name in both}

    async def _names_at(self, stage: str) -> list[str]:
        async with self._client.get(f"{self._urls[stage]}/v1/models", headers=_own_key()) as answer:
            if answer.status != 200:
                raise PdtrimError(f"{stage} does not say which models it has ({answer.status}); has it an API key? Set {KEY}")
            return [str(model["id"]) for model in (await answer.json())["data"]]

    async def _models(self, request: web.Request) -> web.Response:
        try:
            async with self._client.get(f"{self._urls['decode']}/v1/models", headers=_passed_on(request)) as answer:
                return web.Response(status=answer.status, body=await answer.read(), content_type=answer.content_type)
        except UNREACHABLE as error:
            return _error(503, f"decode did not answer: {_words(error)}")

    async def _health(self, _: web.Request) -> web.Response:
        try:
            for stage, url in self._urls.items():
                async with self._client.get(f"{url}/health") as answer:
                    if answer.status != 200:
                        raise PdtrimError(f"{stage} is not healthy ({answer.status})")
            self._names = await self._common_names()
        except (*UNREACHABLE, PdtrimError) as error:
            # When it is back it may be another process, which has not passed a trial yet.
            self._forget()
            return _error(503, _words(error))
        problem = await self._tried()
        return _error(503, problem) if problem else web.json_response({"models": self._names})

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
        answer = await self._prefill(PATHS[0], for_prefill(TRIAL, model, storage=self._storage), _own_key())
        if isinstance(answer, web.Response):
            return f"prefill took no first prompt: {answer.text}"
        try:
            body = for_decode(TRIAL, model, answer, storage=self._storage)
            async with self._client.post(self._urls["decode"] + PATHS[0], json=body, headers=_own_key()) as last:
                return "" if last.status == 200 else f"decode took no first prompt: {await last.text()}"
        except (*UNREACHABLE, HandOverError) as error:
            return f"no first prompt came to decode: {_words(error)}"

    def _forget(self) -> None:
        """Forget the names and the trial, because a server may have been replaced."""
        self._names.clear()
        self._trial = None


def _own_key() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _passed_on(request: web.Request) -> dict[str, str]:
    return {name: request.headers[name] for name in HEADERS if name in request.headers}


def _problem(code: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error" if code < 500 else "server_error", "code": code}}


def _error(code: int, message: str) -> web.Response:
    return web.json_response(_problem(code, message), status=code)


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def main(words: Sequence[str] | None = None) -> None:
    """Serve until stopped."""
    parser = argparse.ArgumentParser(prog="python -m pdtrim_plugins.vllm.proxy", description="A proxy in front of a pair.")
    parser.add_argument("--prefill", required=True, metavar="URL", help="vLLM with the prefill checkpoint")
    parser.add_argument("--decode", required=True, metavar="URL", help="vLLM with the decode checkpoint")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--storage", action="store_true", help="K/V go through files (the example connector)")
    options = parser.parse_args(words)
    app = Proxy(options.prefill, options.decode, storage=options.storage).app()
    # When a client disconnects, its request is cancelled at both servers.
    web.run_app(app, host=options.host, port=options.port, handler_cancellation=True, print=None)


if __name__ == "__main__":
    main()
