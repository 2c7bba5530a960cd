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
import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import aiohttp
from aiohttp import web

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.handoff import HandOverError, RefusedError, check, for_decode, for_prefill
from pdtrim_plugins.vllm.incoming import LARGEST_REQUEST, RUNNER, RequestError, object_in, passed_on
from pdtrim_plugins.vllm.upstream import Answer, BrokenError, Limits, Upstream, object_of, shown

PATHS = ("/v1/completions", "/v1/chat/completions")
KEY = "VLLM_API_KEY"
"""The environment variable that vLLM reads its API key from. The proxy uses it for its own requests only; clients send theirs."""
TRIAL = {"prompt": [1, 2, 3, 4], "max_tokens": 1, "temperature": 0}
"""A first request that tests the hand-over: healthy servers say nothing about the connection between them."""
TRIAL_SECONDS = 2.0
"""How long a health check of the proxy waits for it."""


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to tell."""


class Proxy:
    """The proxy of one pair."""

    def __init__(self, prefill: str, decode: str, *, storage: bool = False, limits: Limits = Limits()) -> None:  # noqa: B008
        self._prefill = Upstream("prefill", prefill, limits)
        self._decode = Upstream("decode", decode, limits)
        self._storage = storage
        self._limits = limits
        self._names: dict[str, str] = {}
        self._trial: asyncio.Task[str] | None = None

    def app(self) -> web.Application:
        """Return the application that serves the proxy; run it with `RUNNER`."""
        app = web.Application(client_max_size=LARGEST_REQUEST, middlewares=[_told])
        app.add_routes([web.post(path, self._generate) for path in PATHS])
        app.add_routes([web.get("/v1/models", self._models), web.get("/health", self._health)])
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
            return _error(503, f"{error}")
        if model is None:
            return _error(404, f"the model '{shown(body['model'].encode())}' does not exist; there is {', '.join(self._names)}")
        answer = await self._prefilled(request.path, for_prefill(body, model, storage=self._storage), headers)
        if isinstance(answer, web.Response):
            return answer
        try:
            body = for_decode(body, model, answer, storage=self._storage)
        except HandOverError as error:
            return _error(502, f"{error}")
        return await self._decoded(request, body, headers)

    async def _prefilled(self, path: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | web.Response:
        """Return prefill's answer, or the response to the client where there is none."""
        try:
            async with self._prefill.asked(path, body, headers) as answer:
                return await answer.object() if answer.status == 200 else await _refusal("prefill", answer)
        except BrokenError as error:
            self._forget()
            return _error(502, f"prefill did not answer: {error}")

    async def _decoded(self, request: web.Request, body: Mapping[str, Any], headers: Mapping[str, str]) -> web.StreamResponse:
        """Pass decode's answer on, a stream as it comes."""
        response: web.StreamResponse | None = None
        try:
            async with self._decode.asked(request.path, body, headers) as answer:
                if answer.status != 200:
                    return await _refusal("decode", answer)
                if not body.get("stream"):
                    found = await answer.object()
                    if not isinstance(found.get("choices"), list):
                        raise BrokenError("it has no choices")
                    return web.json_response(found)
                async for data, _ in answer.events():
                    response = response or await _begun(request)
                    await _sent(response, data)
            response = response or await _begun(request)
            await _sent(response, b"[DONE]")
        except BrokenError as error:
            self._forget()
            message = f"decode did not answer to the end: {error}"
            if response is None:
                return _error(502, message)
            # The client has part of the answer; an event says that it ended with an error, and [DONE] is not sent.
            await _sent(response, json.dumps(_problem(502, message)).encode())
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
                    return await _refusal("decode", answer)
                return web.json_response(await answer.object())
        except BrokenError as error:
            return _error(503, f"decode did not answer: {error}")

    async def _health(self, _: web.Request) -> web.Response:
        try:
            for server in (self._prefill, self._decode):
                async with server.asked("/health") as answer:
                    if answer.status != 200:
                        raise PdtrimError(f"{server.stage} is not healthy ({answer.status})")
            self._names = await self._common_names()
        except PdtrimError as error:
            # When it is back it may be another process, which has not passed a trial yet.
            self._forget()
            return _error(503, f"{error}")
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


def _list_in(found: object) -> list[Any]:
    return found if isinstance(found, list) else []


@web.middleware
async def _told(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Answer every refusal in one form."""
    try:
        return await handler(request)
    except RequestError as error:
        response = _error(error.status, f"{error}")
        if request.can_read_body and not request.content.is_eof():
            # Nobody waits for the rest of what was refused.
            response.force_close()
        return response
    except web.HTTPException as error:
        return _error(error.status, f"{request.method} {shown(request.path.encode())}: {error.reason}")
    except ClientLeftError:
        return web.Response(status=499)


async def _refusal(stage: str, answer: Answer) -> web.Response:
    """Return what a client is told of a status other than 200: a server's own words where it refused, 502 where it failed."""
    content = await answer.content()
    if 400 <= answer.status < 500:
        try:
            return web.json_response(object_of(content), status=answer.status)
        except BrokenError:
            return _error(answer.status, f"{stage} refused: {shown(content)}")
    return _error(502, f"{stage} failed ({answer.status}): {shown(content)}")


async def _begun(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        await response.prepare(request)
    except OSError as error:
        raise ClientLeftError from error
    return response


async def _sent(response: web.StreamResponse, data: bytes) -> None:
    try:
        await response.write(b"data: " + data + b"\n\n")
    except (OSError, aiohttp.ClientError) as error:
        raise ClientLeftError from error


def _problem(code: int, message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error" if code < 500 else "server_error", "code": code}}


def _error(code: int, message: str) -> web.Response:
    return web.json_response(_problem(code, message), status=code)


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
    options = parser.parse_args(words)
    limits = Limits(options.health_seconds, options.token_seconds, options.request_seconds, options.body_seconds)
    app = Proxy(options.prefill, options.decode, storage=options.storage, limits=limits).app()
    asyncio.run(_serve(app, options.host, options.port))


async def _serve(app: web.Application, host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM."""
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    runner = web.AppRunner(app, handler_cancellation=True, **RUNNER, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port).start()
        await stopped.wait()
    finally:
        await runner.cleanup()


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is no time: give seconds, more than 0")
    return value


if __name__ == "__main__":
    main()
