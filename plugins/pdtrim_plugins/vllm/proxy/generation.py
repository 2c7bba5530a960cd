"""Completions and chats: each prompt is handed over from prefill to decode, and a client gets one answer or one error."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.proxy.handoff import HandOverError, Request, for_decode, for_prefill
from pdtrim_plugins.vllm.proxy.metrics import Metrics
from pdtrim_plugins.vllm.proxy.outgoing import RefusalError, begun, refusal, refused, sent
from pdtrim_plugins.vllm.proxy.pair import Pair
from pdtrim_plugins.vllm.proxy.parts import Part, placed, usage_of, whole_of, with_usage
from pdtrim_plugins.vllm.proxy.room import most_tokens
from pdtrim_plugins.vllm.proxy.upstream import Answer, BrokenError, Limits, Upstream

QUEUED = 64
"""Events of several streams that wait for a slow client."""


@dataclass
class Asked:
    """A client's request: its path, its parts, the model name for the servers, its headers, and when it came."""

    request: web.Request
    parts: Sequence[Part]
    model: str
    headers: Mapping[str, str]
    usage: bool
    """Whether the client wants a stream to end with its usage."""
    began: float
    prefills: dict[int, Upstream] = field(default_factory=dict)
    """Who has a prompt in its prefix cache, by the prompt's number."""
    prefilled: dict[int, asyncio.Event] = field(default_factory=dict)
    first: bool = True
    cut: bool = False
    """Whether its stream ended with an error."""


@dataclass(frozen=True)
class HandedOver:
    """A request for decode, and how many tokens it may come to, if that is known."""

    body: Request
    tokens: int | None


class Generation:
    """What answers completions and chats on a pair."""

    def __init__(self, pair: Pair, metrics: Metrics, *, storage: bool, limits: Limits) -> None:
        self._pair = pair
        self._metrics = metrics
        self._storage = storage
        self._slots = asyncio.Semaphore(limits.at_once)
        self._answer_tokens = limits.answer_tokens

    async def answer(self, asked: Asked) -> web.StreamResponse:
        """Return the answer. Raises `RefusalError`."""
        asked.prefilled = {part.prompt: asyncio.Event() for part in asked.parts}
        if asked.parts[0].body.get("stream"):
            return await self._stream(asked)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._object(asked, part)) for part in asked.parts]
        except ExceptionGroup as errors:
            raise _first_of(errors) from None
        answers = [task.result() for task in tasks]
        return web.json_response(answers[0] if len(answers) == 1 else whole_of(asked.parts, answers))

    async def _stream(self, asked: Asked) -> web.StreamResponse:
        """Pass a stream on as it comes; where it breaks, its last event says so, and [DONE] is not sent."""
        response: web.StreamResponse | None = None
        try:
            async with aclosing(self._events(asked)) as events:
                async for data in events:
                    response = response or await begun(asked.request)
                    await sent(response, data)
            response = response or await begun(asked.request)
            await sent(response, b"[DONE]")
        except RefusalError as error:
            if response is None:
                raise
            asked.cut = True
            await sent(response, json.dumps(error.data).encode())
        await response.write_eof()
        return response

    async def _events(self, asked: Asked) -> AsyncGenerator[bytes]:
        if len(asked.parts) == 1:
            async with aclosing(self._of_part(asked, asked.parts[0])) as events:
                async for data, _ in events:
                    yield data
            return
        same: dict[str, Any] = {}
        usages: dict[int, object] = {}
        last: dict[str, Any] = {}
        async with aclosing(self._of_all(asked)) as found:
            async for part, event in found:
                same = same or {key: event[key] for key in ("id", "created") if key in event}
                choices = placed(event, part)
                if choices:
                    yield json.dumps({**event, **same, "choices": choices}).encode()
                elif event.get("usage"):
                    usages[part.index], last = event["usage"], event
        if asked.usage:
            summed = usage_of((part, usages.get(part.index)) for part in asked.parts)
            yield json.dumps({**last, **same, "choices": [], "usage": summed}).encode()

    async def _of_all(self, asked: Asked) -> AsyncGenerator[tuple[Part, dict[str, Any]]]:
        """Yield the events of all parts as they come. One that fails ends them all."""
        queue: asyncio.Queue[tuple[Part, dict[str, Any]] | None] = asyncio.Queue()
        room = asyncio.Semaphore(QUEUED)

        async def read(part: Part) -> None:
            async with aclosing(self._of_part(asked, with_usage(part))) as events:
                async for _, event in events:
                    await room.acquire()
                    queue.put_nowait((part, event))

        async def read_all() -> None:
            try:
                async with asyncio.TaskGroup() as group:
                    for part in asked.parts:
                        group.create_task(read(part))
            finally:
                queue.put_nowait(None)

        reading = asyncio.create_task(read_all())
        try:
            while (item := await queue.get()) is not None:
                room.release()
                yield item
            await reading
        except ExceptionGroup as errors:
            raise _first_of(errors) from None
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _object(self, asked: Asked, part: Part) -> dict[str, Any]:
        async with self._handed_over(asked, part) as handed, self._decoding(asked, part, handed) as answer:
            found = await answer.object()
            choices = found.get("choices")
            if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
                raise BrokenError("it has no choices")
            _check_ends(found)
        self._first(asked)
        self._metrics.tokens += tokens_in(found) or 0
        return found

    async def _of_part(self, asked: Asked, part: Part) -> AsyncGenerator[tuple[bytes, dict[str, Any]]]:
        count, told = 0, None
        async with (
            self._handed_over(asked, part) as handed,
            self._decoding(asked, part, handed) as answer,
            aclosing(answer.events()) as events,
        ):
            async for data, event in events:
                _check_ends(event)
                self._first(asked)
                count += bool(event.get("choices"))
                told = tokens_in(event) or told
                yield data, event
        self._metrics.tokens += count if told is None else told

    @asynccontextmanager
    async def _handed_over(self, asked: Asked, part: Part) -> AsyncIterator[HandedOver]:
        """Lend the request for decode, once prefill has the K/V of a part's prompt."""
        ready = asked.prefilled[part.prompt]
        if not part.first:
            await ready.wait()
        async with self._slots:
            handed = await self._prefilled(asked, part)
            ready.set()
            self._metrics.handovers += 1
            yield handed

    async def _prefilled(self, asked: Asked, part: Part) -> HandedOver:
        server = asked.prefills.get(part.prompt)
        if server is None or not server.names:
            server = asked.prefills[part.prompt] = self._next("prefill")
        body = for_prefill(part.body, asked.model, storage=self._storage)
        try:
            async with server.asked(asked.request.path, body, _headers(asked, part)) as answer:
                if answer.status != 200:
                    raise await refusal("prefill", answer)
                found = await answer.object()
                body = for_decode(part.body, asked.model, found, storage=self._storage)
                return HandedOver(body, most_tokens(part.body, found, self._answer_tokens))
        except HandOverError as error:
            raise refused(502, f"{error}") from None
        except BrokenError as error:
            raise self._broken(server, f"prefill did not answer: {error}") from None

    @asynccontextmanager
    async def _decoding(self, asked: Asked, part: Part, handed: HandedOver) -> AsyncIterator[Answer]:
        server = self._next("decode")
        try:
            async with (
                server.room.lent(handed.tokens),
                server.asked(asked.request.path, handed.body, _headers(asked, part)) as answer,
            ):
                if answer.status != 200:
                    raise await refusal("decode", answer)
                yield answer
        except BrokenError as error:
            raise self._broken(server, f"decode did not answer to the end: {error}") from None

    def _next(self, stage: str) -> Upstream:
        try:
            return self._pair.next(stage)
        except PdtrimError as error:
            raise refused(503, f"{error}") from None

    def _broken(self, server: Upstream, message: str) -> RefusalError:
        self._pair.leave(server, message)
        self._metrics.failures[server.stage] += 1
        return refused(502, message)

    def _first(self, asked: Asked) -> None:
        if asked.first:
            asked.first = False
            self._metrics.first_token(asyncio.get_running_loop().time() - asked.began)


def _headers(asked: Asked, part: Part) -> dict[str, str]:
    """Return what goes to a server; the requests that one became have names of their own."""
    names = {"X-Request-Id": f"-{part.index}"} if len(asked.parts) > 1 else {}
    return {key: value + names.get(key, "") for key, value in asked.headers.items()}


def _check_ends(answer: Mapping[str, Any]) -> None:
    """Raise `BrokenError` for an answer that its server gave up; vLLM ends it like a whole one when it is stopped."""
    choices = answer.get("choices")
    if isinstance(choices, list) and any(isinstance(one, dict) and one.get("finish_reason") == "abort" for one in choices):
        raise BrokenError("it gave the request up")


def _first_of(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what went wrong; where several did, what came first."""
    found: BaseException = errors
    while isinstance(found, BaseExceptionGroup):
        found = found.exceptions[0]
    return found


def tokens_in(answer: Mapping[str, Any]) -> int | None:
    """Return how many tokens an answer says that it generated, None where it does not say."""
    usage = answer.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) and tokens >= 0 else None
