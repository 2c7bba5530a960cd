"""What the proxy sends to clients: refusals in one form, and streams of events."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
from aiohttp import web

from pdtrim_plugins.vllm.proxy.incoming import RequestError
from pdtrim_plugins.vllm.proxy.upstream import Answer, BrokenError, object_of, shown


class RefusalError(Exception):
    """What a client is told instead of an answer: a status and its data."""

    def __init__(self, status: int, data: dict[str, Any]) -> None:
        super().__init__(f"{status}")
        self.status = status
        self.data = data


class ClientLeftError(Exception):
    """The client closed its connection; there is nobody to tell."""


@web.middleware
async def told(request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]) -> web.StreamResponse:
    """Answer every refusal in one form."""
    try:
        return await handler(request)
    except RequestError as error:
        response = error_of(error.status, f"{error}")
        if request.can_read_body and not request.content.is_eof():
            # Nobody waits for the rest of what was refused.
            response.force_close()
        return response
    except RefusalError as error:
        return web.json_response(error.data, status=error.status)
    except web.HTTPException as error:
        return error_of(error.status, f"{request.method} {shown(request.path.encode())}: {error.reason}")
    except ClientLeftError:
        return web.Response(status=499)


async def refusal(stage: str, answer: Answer) -> RefusalError:
    """Return what a client is told of a status other than 200: a server's own words where it refused, 502 where it failed."""
    content = await answer.content()
    if 400 <= answer.status < 500:
        try:
            return RefusalError(answer.status, object_of(content))
        except BrokenError:
            return refused(answer.status, f"{stage} refused: {shown(content)}")
    return refused(502, f"{stage} failed ({answer.status}): {shown(content)}")


def refused(code: int, message: str) -> RefusalError:
    """Return the refusal that says what is wrong."""
    return RefusalError(code, problem_of(code, message))


async def begun(request: web.Request) -> web.StreamResponse:
    """Begin a stream of events. Raises `ClientLeftError`."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    try:
        await response.prepare(request)
    except OSError as error:
        raise ClientLeftError from error
    return response


async def sent(response: web.StreamResponse, data: bytes) -> None:
    """Send an event. Raises `ClientLeftError`."""
    try:
        await response.write(b"data: " + data + b"\n\n")
    except (OSError, aiohttp.ClientError) as error:
        raise ClientLeftError from error


def problem_of(code: int, message: str) -> dict[str, Any]:
    """Return an error in OpenAI's form."""
    return {"error": {"message": message, "type": "invalid_request_error" if code < 500 else "server_error", "code": code}}


def error_of(code: int, message: str) -> web.Response:
    """Return the response that says what is wrong."""
    return web.json_response(problem_of(code, message), status=code)
