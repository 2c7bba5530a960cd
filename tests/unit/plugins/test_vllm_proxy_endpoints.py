"""What the proxy answers beside completions: models, versions, tokens, counts; and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from aiohttp import ClientSession
from aiohttp.test_utils import TestClient, TestServer, unused_port

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.command import main
from pdtrim_plugins.vllm.proxy.running import serve
from pdtrim_plugins.vllm.proxy.upstream import Limits
from tests.unit.plugins.vllm_servers import ASKED, Fake, proxied


def test_models_versions_and_tokens_are_those_of_decode() -> None:
    async def run() -> None:
        async with proxied(Fake(), Fake()) as (client, _):
            assert await (await client.get("/v1/models/m@1")).json() == {"id": "m@1", "max_model_len": 9}
            missing = await client.get("/v1/models/a/b")
            assert (missing.status, (await missing.json())["error"]["message"]) == (404, "the model 'a/b' does not exist")
            told = await (await client.get("/version")).json()
            assert told.keys() == {"version", "pdtrim_core"}
            assert told["version"] == "0.32"
            tokens = await (await client.post("/tokenize", json={"prompt": "x"})).json()
            assert tokens == {"tokens": [1, 2], "asked": {"prompt": "x"}}
            assert (await client.post("/tokenize", data=b"[")).status == 400

    asyncio.run(run())


def test_requests_handovers_failures_and_tokens_are_counted() -> None:
    async def run() -> None:
        async with proxied(Fake(), Fake()) as (client, servers):
            for more in ({}, {"stream": True}, {"echo": True}):
                await (await client.post("/v1/completions", json={**ASKED, **more})).read()
            await servers["decode"].close()
            assert (await client.post("/v1/completions", json=ASKED)).status == 502
            answer = await client.get("/metrics")
            assert answer.content_type == "text/plain"
            lines = (await answer.text()).splitlines()
        for line in (
            'requests_total{status="200"} 2',
            'requests_total{status="400"} 1',
            'requests_total{status="502"} 1',
            "requests_open 0",
            "handovers_total 3",
            'failures_total{server="prefill"} 0',
            'failures_total{server="decode"} 1',
            "tokens_total 9",
            'first_token_seconds_bucket{le="+Inf"} 2',
            "first_token_seconds_count 2",
        ):
            assert f"pdtrim_proxy_{line}" in lines
        for line in lines:
            assert line.startswith(("# HELP pdtrim_proxy_", "# TYPE pdtrim_proxy_", "pdtrim_proxy_"))

    asyncio.run(run())


@asynccontextmanager
async def process(fake: Fake, drain: float = 30.0, head: float = 60.0) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """Lend the address of a proxy that runs as its process does, in front of one server that is both stages, and its task."""
    server = fake.server()
    await server.start_server(shutdown_timeout=0.0)
    behind, port = str(server.make_url("")), unused_port()
    serving = asyncio.create_task(serve(Proxy([behind], [behind]), "127.0.0.1", port, drain, head))
    try:
        url = f"http://127.0.0.1:{port}"
        async with ClientSession() as session:
            while not await well(session, url):  # noqa: ASYNC110 - it waits for a server
                await asyncio.sleep(0.05)
        yield url, serving
    finally:
        serving.cancel()
        await asyncio.gather(serving, return_exceptions=True)
        await server.close()


async def well(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/health") as answer:
            return answer.status == 200
    except OSError:
        return False


def test_sigterm_lets_open_requests_end_and_refuses_new_ones() -> None:
    async def run() -> None:
        fake = Fake()
        async with process(fake) as (url, serving), ClientSession() as session:
            fake.seconds = 1.0
            waiting = asyncio.create_task(session.post(f"{url}/v1/completions", json=ASKED))
            while not fake.open:  # noqa: ASYNC110 - a count of the server
                await asyncio.sleep(0.01)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
            async with session.post(f"{url}/v1/completions", json=ASKED) as refused:
                assert refused.status == 503
                message = (await refused.json())["error"]["message"]
                assert message == "the proxy is stopping and takes no new requests"
            assert not await well(session, url)
            async with await waiting as answer:
                assert answer.status == 200
                await answer.read()
            await asyncio.wait_for(serving, 20)

    asyncio.run(run())


@pytest.mark.parametrize("how", ["the drain is over", "SIGINT", "a second SIGTERM"])
def test_requests_that_are_cut_end_soon_and_with_an_error(how: str) -> None:
    async def run() -> None:
        fake = Fake()
        async with process(fake, drain=0.2 if how == "the drain is over" else 60.0) as (url, serving), ClientSession() as session:
            fake.hangs = "stream"
            stream = await session.post(f"{url}/v1/completions", json={**ASKED, "stream": True})
            assert (await stream.content.readuntil(b"\n\n")).startswith(b"data: ")
            fake.hangs = "before"
            whole = asyncio.create_task(session.post(f"{url}/v1/completions", json=ASKED))
            while fake.open < 2:  # noqa: ASYNC110 - a count of the server
                await asyncio.sleep(0.01)
            begun = asyncio.get_running_loop().time()
            os.kill(os.getpid(), signal.SIGINT if how == "SIGINT" else signal.SIGTERM)
            if how == "a second SIGTERM":
                await asyncio.sleep(0.1)
                os.kill(os.getpid(), signal.SIGTERM)
            rest = (await stream.text()).strip()
            assert "the proxy was stopped" in json.loads(rest.removeprefix("data: "))["error"]["message"]
            async with await whole as answer:
                assert answer.status == 502
                assert "the proxy was stopped" in await answer.text()
            await asyncio.wait_for(serving, 20)
            assert asyncio.get_running_loop().time() - begun < 20

    asyncio.run(run())


def test_a_connection_without_a_whole_head_is_closed() -> None:
    async def run() -> None:
        async with process(Fake(), head=0.5) as (url, _):
            host, port = url.removeprefix("http://").split(":")
            silent = await asyncio.open_connection(host, int(port))
            slow = await asyncio.open_connection(host, int(port))
            slow[1].write(b"GET /health HTTP/1.1\r\nX: ")

            async def drip() -> None:
                while True:
                    slow[1].write(b"x")
                    await asyncio.sleep(0.05)

            dripping = asyncio.create_task(drip())
            for reader, writer in (silent, slow):
                with contextlib.suppress(ConnectionError):
                    assert await asyncio.wait_for(reader.read(), 20) == b""
                writer.close()
            dripping.cancel()

    asyncio.run(run())


def test_a_request_that_takes_longer_than_a_head_may_is_answered() -> None:
    async def run() -> None:
        fake = Fake()
        async with process(fake, head=0.2) as (url, _), ClientSession() as session:
            fake.seconds = 0.5
            async with session.post(f"{url}/v1/completions", json=ASKED) as answer:
                assert answer.status == 200

    asyncio.run(run())


def files_and_memory() -> tuple[int, int]:
    process = psutil.Process()
    return process.num_fds(), process.memory_info().rss


def test_five_hundred_at_once_are_all_answered_and_leave_nothing_behind() -> None:
    async def run() -> None:
        prefill, decode = Fake(), Fake()
        prefill.seconds = decode.seconds = 0.01
        async with proxied(prefill, decode, limits=Limits(at_once=32)) as (client, _):

            async def ask(number: int) -> int:
                body = {**ASKED, "stream": number % 2 == 0}
                async with client.post("/v1/completions", json=body, headers={"Connection": "close"}) as answer:
                    await answer.read()
                    return answer.status

            async def ask_all() -> None:
                assert Counter(await asyncio.gather(*map(ask, range(500)))) == {200: 500}
                async with asyncio.timeout(20):
                    while files_and_memory()[0] > files + 10:  # noqa: ASYNC110 - a count of the system
                        await asyncio.sleep(0.05)

            files, _ = files_and_memory()
            await ask_all()
            _, memory = files_and_memory()
            for _ in range(2):
                await ask_all()
            assert files_and_memory()[1] - memory < 30 * 2**20
            assert max(prefill.most, decode.most) <= 32
            assert prefill.open == decode.open == 0
            prefill.asked.clear()

    asyncio.run(run())


def test_servers_take_turns_and_a_sick_one_is_left_out_until_it_is_back() -> None:
    async def run() -> None:
        fakes = [Fake() for _ in range(4)]
        servers = [fake.server() for fake in fakes]
        for server in servers:
            await server.start_server(shutdown_timeout=0.0)
        urls = [str(server.make_url("")) for server in servers]
        async with TestClient(TestServer(Proxy(urls[:2], urls[2:]).app())) as client:
            assert (await client.get("/health")).status == 200
            assert [len(fake.asked) for fake in fakes] == [1, 1, 1, 1]

            async def statuses(count: int) -> list[int]:
                for fake in fakes:
                    fake.asked.clear()
                return [(await client.post("/v1/completions", json=ASKED)).status for _ in range(count)]

            assert await statuses(4) == [200] * 4
            assert [len(fake.asked) for fake in fakes] == [2, 2, 2, 2]
            port = servers[2].port
            await servers[2].close()
            assert sorted(await statuses(4)) == [200, 200, 200, 502]
            assert await statuses(2) == [200, 200]
            assert 'pdtrim_proxy_servers_well{server="decode"} 1' in await (await client.get("/metrics")).text()
            assert (await client.get("/health")).status == 200
            # Another plan does not come back; its own does.
            for name, number in (("m@2", 1), ("m@1", 2)):
                fakes[2].names = ["m", name]
                servers[2] = fakes[2].server(port)
                await servers[2].start_server(shutdown_timeout=0.0)
                assert (await client.get("/health")).status == 200
                assert f'pdtrim_proxy_servers_well{{server="decode"}} {number}' in await (await client.get("/metrics")).text()
                if number == 1:
                    await servers[2].close()
            assert await statuses(4) == [200] * 4
            assert [len(fake.asked) for fake in fakes] == [2, 2, 2, 2]
        for server in servers:
            await server.close()

    asyncio.run(run())


def test_options_that_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    needed = ["--prefill", "http://a", "--decode", "http://b"]
    for words, told in (
        (["--drain-seconds", "0"], "0 is no time: give seconds, more than 0"),
        (["--at-once", "0"], "0 is no such number: give 1 or more"),
        (["--at-once", "x"], "x is no such number: give 1 or more"),
        (["--token-seconds", "x"], "x is no time: give seconds, more than 0"),
    ):
        with pytest.raises(SystemExit):
            main([*needed, *words])
        assert told in capsys.readouterr().err
