"""What a client sends, read within limits: a JSON object as plain UTF-8, small, flat and soon."""

from __future__ import annotations

import asyncio
import json
import math
from typing import Any

from aiohttp import web

LARGEST_REQUEST = 16 * 2**20
"""Bytes of a request at most."""
DEPTH = 64
"""Lists and objects inside each other at most."""
HEADERS = ("Authorization", "X-Request-Id")
"""Headers of a client that are passed on."""
LONGEST_HEADER = 4096
RUNNER: dict[str, Any] = {"auto_decompress": False, "lingering_time": 1.0}
"""How the proxy is served: a packed body is refused before it is unpacked, and what was refused is not read for long."""


class RequestError(Exception):
    """A request that is refused, with its status."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


async def object_in(request: web.Request, seconds: float) -> dict[str, Any]:
    """Return the JSON object that a request holds. Raises `RequestError`."""
    packed = request.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise RequestError(415, "Content-Encoding: send the body as it is, not packed")
    if (request.charset or "utf-8").lower() not in ("utf-8", "utf8", "us-ascii", "ascii"):
        raise RequestError(415, "Content-Type: the charset of a request is utf-8")
    try:
        async with asyncio.timeout(seconds):
            content = await request.read()
    except TimeoutError:
        raise RequestError(408, f"the body of the request did not arrive within {seconds:g} s") from None
    except web.HTTPRequestEntityTooLarge:
        raise RequestError(413, f"a request has at most {LARGEST_REQUEST} bytes") from None
    try:
        body = json.loads(content.decode(), parse_constant=_refuse)
    except RecursionError:
        raise RequestError(400, f"the request is nested deeper than {DEPTH} levels") from None
    except ValueError as error:
        raise RequestError(400, f"the request is no JSON: {error}") from None
    if not isinstance(body, dict):
        raise RequestError(400, "a request is a JSON object")
    _check(body)
    return body


def passed_on(request: web.Request) -> dict[str, str]:
    """Return the headers that go to both servers. Raises `RequestError` for what no header may be."""
    found = {name: request.headers[name] for name in HEADERS if name in request.headers}
    for name, value in found.items():
        if len(value) > LONGEST_HEADER or not (value.isascii() and value.isprintable()):
            raise RequestError(400, f"{name}: at most {LONGEST_HEADER} printable ASCII characters")
    return found


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")


def _check(body: dict[str, Any]) -> None:
    """Raise `RequestError` for objects nested too deep, numbers that are none, and wrong types of what the proxy reads."""
    level: list[Any] = [body]
    for _ in range(DEPTH):
        inside: list[Any] = []
        for value in level:
            for part in value.values() if isinstance(value, dict) else value:
                if isinstance(part, (dict, list)):
                    inside.append(part)
                elif isinstance(part, float) and not math.isfinite(part):
                    raise RequestError(400, "the request has a number that is too large")
        level = inside
        if not level:
            break
    else:
        raise RequestError(400, f"the request is nested deeper than {DEPTH} levels")
    for key, kind, name in (("model", str, "a text"), ("stream", bool, "true or false"), ("messages", list, "a list")):
        if body.get(key) is not None and not isinstance(body[key], kind):
            raise RequestError(400, f"{key} is {name}")
