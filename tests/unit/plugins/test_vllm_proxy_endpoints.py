"""What the proxy answers beside completions: models, versions, tokens, counts; and how it ends."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from aiohttp import ClientSession
from aiohttp.test_utils import unused_port

from pdtrim_plugins.vllm.proxy.app import Proxy
from pdtrim_plugins.vllm.proxy.running import serve
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


@pytest.mark.parametrize(("limit", "status"), [(30.0, 200), (0.1, None)])
def test_sigterm_lets_open_requests_end_up_to_a_limit(limit: float, status: int | None) -> None:
    async def ask(session: ClientSession, url: str) -> tuple[int | None, Any]:
        try:
            async with session.post(f"{url}/v1/completions", json=ASKED) as answer:
                return answer.status, await answer.json()
        except OSError:
            return None, None

    async def run() -> None:
        fake = Fake()
        fake.seconds = 0.5
        async with fake.server() as one, ClientSession() as session:
            behind, port = str(one.make_url("")), unused_port()
            proxy = Proxy(behind, behind)
            serving = asyncio.create_task(serve(proxy, "127.0.0.1", port, limit))
            url = f"http://127.0.0.1:{port}"
            while (await ask_models(session, url)) != 200:  # noqa: ASYNC110 - it waits for a server
                await asyncio.sleep(0.05)
            waiting = asyncio.create_task(ask(session, url))
            await asyncio.sleep(0.3)
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.05)
            if status:
                refused, told = await ask(session, url)
                assert (refused, told["error"]["message"]) == (503, "the proxy is stopping and takes no new requests")
                assert (await waiting)[0] == status
            else:
                assert (await asyncio.gather(waiting, return_exceptions=True))[0] != (200, None)
            await asyncio.wait_for(serving, 20)

    async def ask_models(session: ClientSession, url: str) -> int:
        try:
            async with session.get(f"{url}/v1/models") as answer:
                return answer.status
        except OSError:
            return 0

    asyncio.run(run())
