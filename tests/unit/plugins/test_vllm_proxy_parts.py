"""Several prompts and several answers in one request: each is handed over by itself, and the client gets one answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from pdtrim_plugins.vllm.proxy.parts import parts_of
from tests.unit.plugins.vllm_servers import PARAMS, Client, Fake, proxied

USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8, "prompt_tokens_details": {"cached_tokens": 2}}


def said(asked: dict[str, Any]) -> str:
    """Return what a stand-in answers to a prompt: which it was, and the seed."""
    return f"{asked.get('prompt', 'chat')}/{asked.get('seed')}"


def servers() -> tuple[Fake, Fake]:
    prefill, decode = Fake(), Fake()
    decode.answer = lambda asked: (200, {"id": said(asked), "choices": [{"index": 0, "text": said(asked)}], "usage": USAGE})
    decode.events = lambda asked: [
        *({"id": said(asked), "choices": [{"index": 0, "text": text}]} for text in (said(asked), "!")),
        *([{"id": "x", "choices": [], "usage": USAGE}] if (asked.get("stream_options") or {}).get("include_usage") else []),
    ]
    return prefill, decode


async def events_of(client: Client, path: str = "/v1/completions", **asked: Any) -> list[Any]:
    answer = await client.post(path, json={"model": "m", "stream": True, **asked})
    assert answer.status == 200
    events = (await answer.text()).strip().split("\n\n")
    assert events.pop() == "data: [DONE]"
    return [json.loads(event.removeprefix("data: ")) for event in events]


def test_each_prompt_is_handed_over_for_each_answer_and_computed_once_at_first() -> None:
    prefill, decode = servers()

    async def run() -> None:
        async with proxied(prefill, decode) as (client, _):
            asked = {"model": "m", "prompt": ["a", "b"], "n": 2, "seed": 7}
            answer = await client.post("/v1/completions", json=asked, headers={"X-Request-Id": "r"})
            assert answer.status == 200
            found = await answer.json()
            assert found["choices"] == [{"index": i, "text": text} for i, text in enumerate(("a/7", "a/8", "b/7", "b/8"))]
            assert found["id"] == "a/7"
            details = {"prompt_tokens_details": {"cached_tokens": 4}}
            assert found["usage"] == {"prompt_tokens": 10, "completion_tokens": 12, "total_tokens": 22, **details}

    asyncio.run(run())
    assert sorted(asked["prompt"] for asked in prefill.asked) == ["a", "a", "b", "b"]
    # The other answers to a prompt wait until it is in the prefix cache.
    assert {asked["prompt"] for asked in prefill.asked[:2]} == {"a", "b"}
    assert all("n" not in asked for asked in decode.asked)
    assert all(asked["kv_transfer_params"] == PARAMS for asked in decode.asked)
    assert sorted(headers["X-Request-Id"] for headers in decode.headers) == ["r-0", "r-1", "r-2", "r-3"]


@pytest.mark.parametrize("usage", [False, True])
def test_streams_of_all_come_as_one(usage: bool) -> None:
    async def run() -> None:
        async with proxied(*servers()) as (client, _):
            events = await events_of(client, prompt=[[1], [2, 3]], n=2, stream_options={"include_usage": usage})
            assert len({event["id"] for event in events}) == 1
            texts = dict.fromkeys(range(4), "")
            for event in events[:8]:
                (choice,) = event["choices"]
                texts[choice["index"]] += choice["text"]
            assert texts == {0: "[1]/None!", 1: "[1]/None!", 2: "[2, 3]/None!", 3: "[2, 3]/None!"}
            ends = [event["usage"] for event in events[8:]]
            assert [(end["prompt_tokens"], end["completion_tokens"]) for end in ends] == [(10, 12)] * usage

    asyncio.run(run())


def test_a_chat_may_have_several_answers_and_a_list_may_have_one_prompt() -> None:
    async def run() -> None:
        async with proxied(*servers()) as (client, _):
            asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "n": 3}
            found = await (await client.post("/v1/chat/completions", json=asked)).json()
            assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
            assert (found["usage"]["prompt_tokens"], found["usage"]["completion_tokens"]) == (5, 9)
            for prompt in (["a"], [[1, 2]]):
                found = await (await client.post("/v1/completions", json={"model": "m", "prompt": prompt})).json()
                assert found["choices"] == [{"index": 0, "text": f"{prompt[0]}/None"}]
                events = await events_of(client, prompt=prompt)
                assert "".join(event["choices"][0]["text"] for event in events) == f"{prompt[0]}/None!"

    asyncio.run(run())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("stage", ["prefill", "decode"])
def test_one_that_fails_gives_one_error_and_cancels_the_rest(stage: str, stream: bool) -> None:
    prefill, decode = servers()
    server = {"prefill": prefill, "decode": decode}[stage]
    good = server.answer

    def one_fails(asked: dict[str, Any]) -> Any:
        if asked["prompt"] == "b":
            return 400, {"error": {"message": "too long"}}
        return good(asked) if callable(good) else good

    server.answer = one_fails
    decode.hangs = "" if stage == "decode" else "before"

    async def run() -> None:
        async with proxied(prefill, decode) as (client, _):
            asked = {"model": "m", "prompt": ["a", "b", "c"], "stream": stream}
            answer = await client.post("/v1/completions", json=asked)
            if answer.status == 200:
                # Others had begun to answer; the stream does not end like a whole one.
                events = (await answer.text()).strip().split("\n\n")
                assert "too long" in events[-1]
                assert "data: [DONE]" not in events
            else:
                assert (answer.status, await answer.json()) == (400, {"error": {"message": "too long"}})
            async with asyncio.timeout(20):
                while decode.open or prefill.open:  # noqa: ASYNC110 - counts of servers
                    await asyncio.sleep(0.02)
            assert (await (await client.get("/metrics")).text()).count("pdtrim_proxy_requests_open 0") == 1

    asyncio.run(run())


def test_an_answer_that_its_server_gave_up_is_none() -> None:
    prefill, decode = servers()
    decode.answer = (200, {"choices": [{"index": 0, "text": "half", "finish_reason": "abort"}]})
    decode.events = lambda _: [{"choices": [{"text": "half"}]}, {"choices": [{"text": "", "finish_reason": "abort"}]}]

    async def run() -> None:
        async with proxied(prefill, decode) as (client, _):
            answer = await client.post("/v1/completions", json={"model": "m", "prompt": "a"})
            assert answer.status == 502
            answer = await client.post("/v1/completions", json={"model": "m", "prompt": "a", "stream": True})
            events = (await answer.text()).strip().split("\n\n")
            assert "it gave the request up" in events[-1]
            assert "data: [DONE]" not in events

    asyncio.run(run())


def test_one_prompt_with_one_answer_stays_as_it_is() -> None:
    asked = {"model": "m", "prompt": [1, 2], "seed": 3, "stream_options": {}}
    (part,) = parts_of(asked)
    assert part.body == asked
    assert parts_of({"messages": []})[0].body == {"messages": []}
