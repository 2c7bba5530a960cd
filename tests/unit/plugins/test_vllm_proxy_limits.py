"""The proxy when something is wrong: servers that go away, hang or answer nonsense, clients that send what none does."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import io
import json
import socket
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from aiohttp.test_utils import TestServer

from pdtrim_plugins.vllm.proxy import upstream
from pdtrim_plugins.vllm.proxy.incoming import LARGEST_REQUEST
from pdtrim_plugins.vllm.proxy.upstream import Limits
from tests.unit.plugins.vllm_servers import ASKED, Client, Fake, proxied

SECONDS = 30.0
"""Far below the limit on a whole request, and far above the others, as the machine may be busy."""
Talk = Callable[[Client, dict[str, Fake], dict[str, TestServer]], Awaitable[None]]


def talk(what: Talk, limits: Limits | None = None) -> None:
    async def run() -> None:
        fakes = {"prefill": Fake(), "decode": Fake()}
        fakes["decode"].events = lambda _: [{"choices": [{"text": "one"}]}]
        async with proxied(*fakes.values(), limits=limits or Limits()) as (client, servers):
            while (await client.get("/health")).status != 200:  # noqa: ASYNC110 - what it waits for is in a server
                await asyncio.sleep(0.1)
            await what(client, fakes, servers)

    asyncio.run(run())


async def error_of(answer: Any) -> tuple[int, str]:
    message = (await answer.json())["error"]["message"]
    assert "\n" not in message
    assert len(message) < 600
    return answer.status, message


async def finished(answer: Any) -> str:
    """Return the error of a stream that has begun and was cut; it does not end like a whole one."""
    events = (await answer.text()).strip().split("\n\n")
    assert events[0] == 'data: {"choices": [{"text": "one"}]}'
    assert [json.loads(event.removeprefix("data: ")).keys() for event in events] == [{"choices"}, {"error"}]
    return str(json.loads(events[-1].removeprefix("data: "))["error"]["message"])


@pytest.mark.parametrize("how", ["closes", "freezes", "is ill"])
@pytest.mark.parametrize(("stage", "stream"), [("prefill", False), ("decode", False), ("decode", True)])
def test_requests_of_a_server_that_goes_away_end_soon(how: str, stage: str, stream: bool) -> None:
    async def what(client: Client, fakes: dict[str, Fake], servers: dict[str, TestServer]) -> None:
        fake = fakes[stage]
        fake.hangs = "stream" if stream else "before"
        # The limit between tokens is not what ends these: it is tested below.
        open_ones = [asyncio.create_task(client.post("/v1/completions", json={**ASKED, "stream": stream})) for _ in range(3)]
        await fake.waiting.wait()
        if stream:
            await asyncio.gather(*open_ones)
        begun = time.monotonic()
        fake.frozen, fake.health = how == "freezes", 503 if how == "is ill" else 200
        if how == "closes":
            await servers[stage].close()
        for task in open_ones:
            answer = await task
            if stream:
                assert (await finished(answer)).startswith("decode did not answer to the end: ")
            else:
                status, message = await error_of(answer)
                assert (status, message.startswith(f"{stage} did not answer")) == (502, True)
        assert time.monotonic() - begun < SECONDS

    talk(what, Limits(health=1.0))


def test_a_server_that_falls_ill_is_found_long_before_one_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upstream, "BETWEEN_CHECKS", 0.1)

    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].hangs = "before"
        asked = asyncio.create_task(client.post("/v1/completions", json=ASKED))
        await fakes["decode"].waiting.wait()
        fakes["decode"].health = 503
        status, message = await error_of(await asyncio.wait_for(asked, SECONDS))
        assert (status, message) == (502, "decode did not answer to the end: its health became 503")

    talk(what, Limits(health=600.0))


def test_a_server_that_is_slow_to_tell_its_health_but_answers_is_not_gone() -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].frozen, fakes["decode"].pause = True, 0.3
        fakes["decode"].events = lambda _: [{"choices": [{"text": "one"}]}] * 8
        answer = await client.post("/v1/completions", json={**ASKED, "stream": True})
        assert (await answer.text()).endswith("data: [DONE]\n\n")

    talk(what, Limits(health=1.0))


def test_a_server_that_accepts_no_connection_is_silent() -> None:
    async def what(client: Client, fakes: dict[str, Fake], servers: dict[str, TestServer]) -> None:
        del fakes
        port = servers["decode"].port
        await servers["decode"].close()
        with socket.socket() as full, contextlib.ExitStack() as waiting:
            full.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            full.bind(("127.0.0.1", port))
            full.listen(0)
            # Whoever comes behind those that fill the queue is not answered.
            for one in [waiting.enter_context(socket.socket()) for _ in range(3)]:
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            status, message = await error_of(await client.post("/v1/completions", json=ASKED))
        assert (status, message) == (502, "decode did not answer to the end: it says nothing about its health for 0.5 s")

    talk(what, Limits(health=0.5))


def test_a_stream_that_hangs_while_its_server_is_well_ends() -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].hangs = "stream"
        answer = await client.post("/v1/completions", json={**ASKED, "stream": True})
        assert await finished(answer) == ("decode did not answer to the end: nothing came for 0.3 s in the middle of a stream")

    talk(what, Limits(token=0.3))


def test_a_stream_that_ends_without_saying_so_is_an_error() -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].undone = True
        answer = await client.post("/v1/completions", json={**ASKED, "stream": True})
        assert await finished(answer) == "decode did not answer to the end: the stream ended before [DONE]"

    talk(what)


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_request_that_takes_too_long_ends_though_its_server_is_well(stage: str) -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes[stage].hangs = "before"
        status, message = await error_of(await client.post("/v1/completions", json=ASKED))
        assert (status, message.rpartition(": ")[2]) == (502, "it took more than 2 s")

    talk(what, Limits(whole=2.0))


@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_server_that_was_restarted_is_asked_again(stage: str) -> None:
    async def what(client: Client, fakes: dict[str, Fake], servers: dict[str, TestServer]) -> None:
        port = servers[stage].port
        await servers[stage].close()
        assert (await client.post("/v1/completions", json=ASKED)).status == 502
        servers[stage] = fakes[stage].server(port)
        await servers[stage].start_server()
        assert (await client.post("/v1/completions", json=ASKED)).status == 200

    talk(what)


def test_a_long_answer_of_a_healthy_server_is_not_cut() -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].hangs = "before"
        waiting = asyncio.create_task(client.post("/v1/completions", json=ASKED))
        await asyncio.sleep(4.0)
        assert not waiting.done()
        waiting.cancel()

    talk(what, Limits(health=3.0, token=0.1))


SENT = json.dumps(ASKED).encode()


@pytest.mark.parametrize(
    ("body", "headers", "status", "message"),
    [
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {}, 400, "the request is nested deeper than 64 levels"),
        (b'{"x": ' + b'{"a":' * 100 + b"1" + b"}" * 101, {}, 400, "the request is nested deeper than 64 levels"),
        (b"\xff\xfe", {}, 400, "the request is no JSON: "),
        (b'{"temperature": NaN}', {}, 400, "the request is no JSON: NaN is no number of JSON"),
        (b'{"temperature": 1e999}', {}, 400, "the request has a number that is too large"),
        (b'{"seed": ' + b"9" * 5000 + b"}", {}, 400, "the request is no JSON: "),
        (b'{"model": ["m"], "prompt": "x"}', {}, 400, "model is a text"),
        (b'{"model": {}, "prompt": "x"}', {}, 400, "model is a text"),
        (b'{"prompt": "x", "stream": "false"}', {}, 400, "stream is true or false"),
        (b'{"prompt": 7}', {}, 400, "prompt: give a text or a list of token ids that is not empty"),
        (b'{"prompt": []}', {}, 400, "prompt: give a text or a list of token ids that is not empty"),
        (b'{"prompt": [1, "a"]}', {}, 400, "prompt: give a text or a list of token ids that is not empty"),
        (b'{"messages": "x"}', {}, 400, "messages is a list"),
        (b'{"prompt": "x", "n": {}}', {}, 400, "n is a whole number, 1 or more"),
        (b'{"prompt": "x", "n": "2"}', {}, 400, "n is a whole number, 1 or more"),
        (b'{"prompt": "x", "n": 0}', {}, 400, "n is a whole number, 1 or more"),
        (b'{"prompt": ["x", "y"], "n": 129}', {}, 400, "258 answers in one request: at most 256"),
        (b'{"prompt": [[1], []]}', {}, 400, "prompt: give a text or a list of token ids"),
        (SENT, {"Content-Type": "application/json; charset=nonsense"}, 415, "Content-Type: the charset of a request is utf-8"),
        (SENT, {"Content-Type": "application/json; charset=punycode"}, 415, "Content-Type: the charset of a request is utf-8"),
        (SENT, {"X-Request-Id": "x" * 5000}, 400, "X-Request-Id: at most 4096 printable ASCII characters"),
        (b" " * (LARGEST_REQUEST + 1), {}, 413, f"a request has at most {LARGEST_REQUEST} bytes"),
    ],
)
def test_what_no_client_sends(body: bytes, headers: dict[str, str], status: int, message: str) -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        before = [len(fake.asked) for fake in fakes.values()]
        answer = await client.post(
            "/v1/completions", data=io.BytesIO(body), headers={"Content-Type": "application/json", **headers}
        )
        found = await error_of(answer)
        assert (found[0], found[1].startswith(message)) == (status, True), found
        assert [len(fake.asked) for fake in fakes.values()] == before
        assert (await client.post("/v1/completions", json=ASKED)).status == 200

    talk(what)


def test_a_packed_body_is_not_unpacked() -> None:
    bomb = gzip.compress(bytes(2**28), 1)

    async def what(client: Client, *_: object) -> None:
        begun = time.monotonic()
        answer = await client.post("/v1/completions", data=io.BytesIO(bomb), headers={"Content-Encoding": "gzip"})
        assert await error_of(answer) == (415, "Content-Encoding: send the body as it is, not packed")
        assert time.monotonic() - begun < SECONDS

    talk(what)


def test_a_body_that_does_not_arrive_ends() -> None:
    async def what(client: Client, *_: object) -> None:
        reader, writer = await asyncio.open_connection(client.host, client.port)
        writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        said = await reader.read()
        assert said.startswith(b"HTTP/1.1 408")
        assert b"the body of the request did not arrive within 0.3 s" in said
        writer.close()

    talk(what, Limits(body=0.3))


@pytest.mark.parametrize(("path", "status"), [("/nothing", 404), ("/v1/completions", 405)])
def test_paths_and_methods_that_are_none(path: str, status: int) -> None:
    async def what(client: Client, *_: object) -> None:
        assert (await error_of(await client.get(path)))[0] == status

    talk(what)


@pytest.mark.parametrize(
    "content",
    [b"", b"nonsense", b"[]", b"7", b"{}", b"[" * 100_000, b'{"choices": 3}', b'{"kv_transfer_params": [1]}', b"\xff\xfe\x00"],
)
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_a_server_that_answers_nonsense(content: bytes, stage: str) -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes[stage].content = content
        status, message = await error_of(await client.post("/v1/completions", json=ASKED))
        assert (status, message.startswith(stage)) == (502, True), message
        fakes[stage].content = None
        assert (await client.post("/v1/completions", json=ASKED)).status == 200

    talk(what)


@pytest.mark.parametrize("models", [b"nonsense", b"{}", b'{"data": 7}', b'{"data": [7]}', b'{"data": [{"id": 7}]}', b"[]"])
def test_a_server_that_names_no_models(models: bytes) -> None:
    async def what(client: Client, fakes: dict[str, Fake], _: dict[str, TestServer]) -> None:
        fakes["decode"].models = models
        assert (await error_of(await client.get("/health")))[0] == 503
        assert (await error_of(await client.post("/v1/completions", json=ASKED)))[0] == 503

    talk(what)
