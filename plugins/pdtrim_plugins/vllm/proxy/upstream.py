"""One server behind the proxy: its answers within limits of time and size, and its health while requests are open."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import aiohttp

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.proxy.room import Room

LARGEST_ANSWER = 256 * 2**20
"""Bytes of an answer at most; of a stream, bytes of one event."""
UNREACHABLE = (aiohttp.ClientError, OSError, ValueError)
SHOWN = 300
CHECKS = 5
"""So many times at least in the seconds that a server may be silent, its health is asked while requests are open."""
BETWEEN_CHECKS = 2.0
"""Seconds at most from one such question to the next."""
FAILED_CHECKS = 2
"""So many in a row, refused or answered with an error, tell that a server is gone."""


@dataclass(frozen=True)
class Limits:
    """Seconds that things may take: an answer about health, the next piece of a stream, a request, the arrival of its body.

    `at_once` is how many prompts are with the servers at most; more wait in the order in which they came. `answer_tokens` are
    those for which a request has room at decode that does not say how long its answer may be; None for all that are left.
    """

    health: float = 30.0
    token: float = 120.0
    whole: float = 3600.0
    body: float = 60.0
    at_once: int = 256
    answer_tokens: int | None = None


class BrokenError(PdtrimError):
    """A server that went away, hung, or answered what no server of a pair answers."""


@dataclass
class Call:
    """One open request to a server. `reason` is why it ends when its scope does."""

    scope: asyncio.Timeout
    reason: str
    gone: bool = False

    def end(self, reason: str, seconds: float = 0.0) -> None:
        """End the request in so many seconds, with an error that says why."""
        self.reason = reason
        self.scope.reschedule(asyncio.get_running_loop().time() + seconds)


class Answer:
    """What a server answers, read within limits. All methods raise `BrokenError`."""

    def __init__(self, answer: aiohttp.ClientResponse, call: Call, limits: Limits, hear: Callable[[], None]) -> None:
        self.status = answer.status
        self.is_stream = answer.content_type == "text/event-stream"
        self._answer = answer
        self._call = call
        self._limits = limits
        self._hear = hear

    async def content(self) -> bytes:
        """Return the whole of it."""
        found = bytearray()
        async for chunk in self._answer.content.iter_any():
            self._hear()
            found += chunk
            if len(found) > LARGEST_ANSWER:
                raise BrokenError(f"more than {LARGEST_ANSWER} bytes came")
        return bytes(found)

    async def object(self) -> dict[str, Any]:
        """Return the JSON object that it is."""
        return object_of(await self.content())

    async def events(self) -> AsyncGenerator[tuple[bytes, dict[str, Any]]]:
        """Yield each event of a stream as it came and as its object; return behind [DONE], and only there."""
        if not self.is_stream:
            raise BrokenError(f"no stream of events came, but {shown(await self.content())}")
        rest, begun = b"", False
        while chunk := await self._piece(begun=begun):
            begun = True
            self._hear()
            *events, rest = (rest + chunk).replace(b"\r\n", b"\n").split(b"\n\n")
            for data in (event.removeprefix(b"data:").strip() for event in events if event.startswith(b"data:")):
                if data == b"[DONE]":
                    return
                yield data, object_of(data)
            if len(rest) > LARGEST_ANSWER:
                raise BrokenError(f"more than {LARGEST_ANSWER} bytes came in one event")
        raise BrokenError("the stream ended before [DONE]")

    async def _piece(self, *, begun: bool) -> bytes:
        if not begun:
            # The first token comes when earlier requests leave room for it.
            return await self._answer.content.readany()
        until, reason = self._call.scope.when(), self._call.reason
        seconds = self._limits.token
        if until is not None and until < asyncio.get_running_loop().time() + seconds:
            return await self._answer.content.readany()
        self._call.end(f"nothing came for {seconds:g} s in the middle of a stream", seconds)
        piece = await self._answer.content.readany()
        if not self._call.gone:
            self._call.reason = reason
            self._call.scope.reschedule(until)
        return piece


class Upstream:
    """A server by its stage and address. `session` is set when the proxy starts."""

    def __init__(self, stage: str, url: str, limits: Limits) -> None:
        self.stage = stage
        self.url = url.rstrip("/")
        self.names: tuple[str, ...] = ()
        """The models that it serves while requests go to it; empty while they do not, for the reason `problem`."""
        self.problem = ""
        self.tried = False
        """Whether it took part in a hand-over since then."""
        self.looked = float("-inf")
        """When it was last looked at, in the loop's time."""
        self.room = Room()
        """What there is for K/V of requests; known of decode servers alone."""
        self.session: aiohttp.ClientSession | None = None
        self._limits = limits
        self._calls: dict[int, Call] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._stopped = ""
        self._heard = 0.0
        """When a piece of an answer came, in the loop's time."""

    def cut(self, reason: str) -> None:
        """End all open requests with an error, and those that come."""
        self._stopped = reason
        for call in self._calls.values():
            call.gone = True
            call.end(reason)

    def hear(self) -> None:
        """Note that something came: a server that answers requests is there, though it may be slow to say so."""
        self._heard = asyncio.get_running_loop().time()

    def close(self) -> None:
        """Stop watching."""
        if self._watcher is not None:
            self._watcher.cancel()

    @contextlib.asynccontextmanager
    async def asked(
        self, path: str, body: Mapping[str, Any] | None = None, headers: Mapping[str, str] | None = None
    ) -> AsyncIterator[Answer]:
        """Lend the answer to a request, GET without a body.

        Raises `BrokenError`, also out of whatever is done with the answer, once the server is gone or too slow.
        """
        assert self.session is not None
        if self._stopped:
            raise BrokenError(self._stopped)
        # As it is, never packed: a small answer would become a large one here.
        told = {"Accept-Encoding": "identity", **(headers or {})}
        method = "GET" if body is None else "POST"
        call: Call | None = None
        try:
            async with asyncio.timeout(self._limits.whole) as scope:
                call = self._calls[id(scope)] = Call(scope, f"it took more than {self._limits.whole:g} s")
                if self._watcher is None or self._watcher.done():
                    self._watcher = asyncio.create_task(self._watch())
                try:
                    url = self.url + path
                    async with self.session.request(method, url, json=body, headers=told, allow_redirects=False) as answer:
                        self.hear()
                        yield Answer(answer, call, self._limits, self.hear)
                finally:
                    del self._calls[id(scope)]
        except (TimeoutError, *UNREACHABLE) as error:
            ended = call is not None and isinstance(error, TimeoutError) and call.scope.expired()
            raise BrokenError(call.reason if call and ended else words(error)) from error

    async def _watch(self) -> None:
        """Ask for the server's health while requests are open; end them all once it is gone, or says nothing for too long."""
        failed = 0
        while self._calls:
            await asyncio.sleep(min(BETWEEN_CHECKS, self._limits.health / CHECKS))
            problem, at_once = await self._problem()
            failed = failed + 1 if problem else 0
            if problem and (at_once or failed >= FAILED_CHECKS):
                for call in self._calls.values():
                    call.gone = True
                    call.end(problem)
                failed = 0

    async def _problem(self) -> tuple[str, bool]:
        """Return what is wrong with the server, empty if nothing, and whether that is sure."""
        assert self.session is not None
        limit = aiohttp.ClientTimeout(total=self._limits.health)
        try:
            async with self.session.get(f"{self.url}/health", timeout=limit) as answer:
                return ("" if answer.status == 200 else f"its health became {answer.status}"), False
        except TimeoutError:
            if asyncio.get_running_loop().time() - self._heard < self._limits.health:
                return "", False
            return f"it says nothing about its health for {self._limits.health:g} s", True
        except UNREACHABLE as error:
            return f"it went away ({words(error)})", False


def object_of(content: bytes) -> dict[str, Any]:
    """Return the JSON object that a server answered. Raises `BrokenError` where it is none."""
    try:
        found = json.loads(content)
    except (ValueError, RecursionError):
        raise BrokenError(f"it is no JSON: {shown(content)}") from None
    if not isinstance(found, dict):
        raise BrokenError(f"it is no JSON object: {shown(content)}")
    return found


def shown(content: bytes) -> str:
    """Return the beginning of an answer in one line."""
    text = " ".join(content[: 4 * SHOWN].decode(errors="replace").split())
    return (text if len(text) <= SHOWN else text[:SHOWN] + "...") or "nothing"


def words(error: BaseException) -> str:
    """Return what an error says in one line."""
    return shown((str(error) or type(error).__name__).encode())
