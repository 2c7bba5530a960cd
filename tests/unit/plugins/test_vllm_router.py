"""vllm-router in front of our proxies: their check of plans and their refusals hold, and it sends no prompt where these refuse.

The servers behind the proxies only pretend to be vLLM. The router is the real one: `pip install vllm-router` into an environment
of its own, and name its command in PDTRIM_ROUTER.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from aiohttp import ClientError, ClientSession
from aiohttp.test_utils import unused_port

from tests.unit.plugins.vllm_servers import ASKED, Fake, proxied

ROUTER = os.environ.get("PDTRIM_ROUTER") or shutil.which("vllm-router")
SECONDS = 30

pytestmark = pytest.mark.skipif(ROUTER is None, reason="needs vllm-router (PDTRIM_ROUTER)")


class Pair:
    """A prefill and a decode server."""

    def __init__(self, *, prefill_plan: str = "1") -> None:
        self.prefill, self.decode = Fake(plan=prefill_plan), Fake()

    def prompts(self) -> tuple[list[str], list[str]]:
        """Return the clients' prompts that prefill and decode were sent; the proxy has one of its own, of tokens."""
        prefill, decode = ([asked["prompt"] for asked in server.asked] for server in (self.prefill, self.decode))
        return [prompt for prompt in prefill if isinstance(prompt, str)], [prompt for prompt in decode if isinstance(prompt, str)]


@asynccontextmanager
async def routed(*pairs: Pair) -> AsyncIterator[tuple[ClientSession, str]]:
    """Lend a client and the address of a router over the proxies of some pairs, once it answers."""
    async with AsyncExitStack() as opened:
        proxies = [(await opened.enter_async_context(proxied(pair.prefill, pair.decode)))[0] for pair in pairs]
        urls = [str(proxy.make_url("")).rstrip("/") for proxy in proxies]
        session, port = await opened.enter_async_context(ClientSession()), unused_port()
        assert ROUTER is not None
        router = await asyncio.create_subprocess_exec(
            *(ROUTER, "--worker-urls", *urls, "--policy", "round_robin", "--host", "127.0.0.1", "--port", str(port)),
            *("--prometheus-port", str(unused_port()), "--health-check-interval-secs", "1"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        try:
            async with asyncio.timeout(SECONDS):
                while not await _answers(session, f"http://127.0.0.1:{port}/health"):  # noqa: ASYNC110 - it waits for a server
                    await asyncio.sleep(0.1)
            yield session, f"http://127.0.0.1:{port}/v1/completions"
        finally:
            router.terminate()
            await router.wait()


async def _answers(session: ClientSession, url: str) -> bool:
    try:
        async with session.get(url) as answer:
            return answer.status == 200
    except ClientError:
        return False


def test_prompts_go_to_every_pair_and_each_is_handed_over_within_one() -> None:
    async def run() -> None:
        pairs = Pair(), Pair()
        async with routed(*pairs) as (session, url):
            for number in range(6):
                async with session.post(url, json={**ASKED, "prompt": f"prompt {number}"}) as answer:
                    assert answer.status == 200, await answer.text()
        for pair in pairs:
            prefill, decode = pair.prompts()
            assert prefill == decode != []
            assert all(asked["kv_transfer_params"]["do_remote_prefill"] for asked in pair.decode.asked)

    asyncio.run(run())


def test_a_stream_comes_through() -> None:
    async def run() -> None:
        async with routed(Pair()) as (session, url), session.post(url, json={**ASKED, "stream": True}) as answer:
            text = await answer.text()
        assert answer.status == 200
        assert "one" in text
        assert text.rstrip().endswith("data: [DONE]")

    asyncio.run(run())


def test_what_a_pair_cannot_serve_is_refused_and_reaches_no_server() -> None:
    async def run() -> None:
        pair = Pair()
        async with routed(pair) as (session, url), session.post(url, json={**ASKED, "echo": True}) as answer:
            assert answer.status == 400
            assert "a pair does not return the prompt" in await answer.text()
        assert pair.prompts() == ([], [])

    asyncio.run(run())


def test_stages_of_two_plans_get_no_prompt() -> None:
    async def run() -> None:
        mixed = Pair(prefill_plan="2")
        async with routed(mixed, Pair()) as (session, url):
            statuses = []
            for _ in range(6):
                async with session.post(url, json=ASKED) as answer:
                    statuses.append(answer.status)
        assert 200 in statuses
        assert mixed.decode.asked == mixed.prefill.asked == []

    asyncio.run(run())
