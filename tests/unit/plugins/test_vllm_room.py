"""The room that a decode server has for K/V."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")

from pdtrim_plugins.vllm.proxy.room import ALL_LEFT, Room, most_tokens
from pdtrim_plugins.vllm.proxy.upstream import Limits
from tests.unit.plugins.vllm_servers import PARAMS, Fake, proxied

CACHE = (
    b"# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
    b'vllm:cache_config_info{_block_size_resolved="True",block_size="16",engine="0",num_gpu_blocks="%d",'
    b'num_gpu_blocks_override="None"} 1.0\n'
)


def room_of(*blocks: int, longest: object = 1000) -> Room:
    room = Room()
    room.learn(b"".join(CACHE % count for count in blocks), longest)
    return room


@pytest.mark.parametrize(
    ("metrics", "size"),
    [
        (CACHE % 11, 160),
        (CACHE % 11 + CACHE % 5, 224),
        (b"", None),
        (b"# nothing of a cache\nvllm:num_preemptions_total 3\n", None),
        (b'vllm:cache_config_info{block_size="None",num_gpu_blocks="11"} 1.0\n', None),
        (b'vllm:cache_config_info{block_size="0",num_gpu_blocks="11"} 1.0\n', None),
        (CACHE % 11 + b'vllm:cache_config_info{block_size="16"} 1.0\n', None),
        (b"\xff\xfe\x00{{{", None),
    ],
)
def test_what_a_server_tells_of_its_cache_is_understood(metrics: bytes, size: int | None) -> None:
    room = Room()
    room.learn(metrics, 9)
    assert room.size == size


@pytest.mark.parametrize(
    ("request_", "tokens"),
    [
        ({"prompt": "x", "max_tokens": 7}, 12),
        ({"prompt": "x"}, 21),
        ({"prompt": "x", "max_tokens": -(10**30)}, 5),
        ({"prompt": "x", "max_tokens": "7"}, 5 + ALL_LEFT),
        ({"prompt": "x", "max_tokens": None}, 5 + ALL_LEFT),
        ({"messages": [], "max_completion_tokens": 7, "max_tokens": 9}, 12),
        ({"messages": [], "max_tokens": 9}, 14),
        ({"messages": [], "max_completion_tokens": None, "max_tokens": 9}, 14),
        ({"prompt": "x", "max_completion_tokens": 1, "max_tokens": 9}, 14),
        ({"messages": []}, 5 + ALL_LEFT),
    ],
)
def test_what_a_request_may_come_to(request_: Mapping[str, Any], tokens: int) -> None:
    assert most_tokens(request_, {"usage": {"prompt_tokens": 5}}, None) == tokens
    if tokens > ALL_LEFT:
        assert most_tokens(request_, {"usage": {"prompt_tokens": 5}}, 100) == 105


@pytest.mark.parametrize("answer", [{}, {"usage": None}, {"usage": {"prompt_tokens": "5"}}, {"usage": {"prompt_tokens": True}}])
def test_a_prompt_of_unknown_length_takes_no_part(answer: Mapping[str, Any]) -> None:
    assert most_tokens({"prompt": "x"}, answer, None) is None


def test_who_comes_first_has_room_first_and_nothing_is_left_taken() -> None:
    async def scenario() -> list[str]:
        room, told = room_of(11), list[str]()

        async def ask(name: str, tokens: int | None) -> None:
            async with room.lent(tokens):
                told.append(name)
                await asyncio.sleep(0.01)

        async with asyncio.TaskGroup() as group:
            for name, tokens in (("big", 100), ("bigger", 150), ("small", 10), ("unknown", None), ("too big", 5000)):
                group.create_task(ask(name, tokens))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert room.waiting == 3
        assert (room.waiting, room._taken) == (0, 0)
        return told

    assert asyncio.run(scenario()) == ["big", "unknown", "bigger", "small", "too big"]


def test_a_size_that_is_told_anew_counts_at_once_and_stands_while_nothing_is_told() -> None:
    async def scenario() -> None:
        room, inside = room_of(3), list[int]()

        async def ask(number: int) -> None:
            async with room.lent(20):
                inside.append(number)
                await asyncio.sleep(0.05)

        async with asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(ask(number))
            await asyncio.sleep(0.01)
            assert inside == [0]
            room.learn(b"", -5)
            await asyncio.sleep(0.01)
            assert (inside, room.size, room.longest) == ([0], 32, None)
            room.learn(CACHE % 5, True)
            await asyncio.sleep(0.01)
            assert (inside, room.size, room.longest) == ([0, 1], 64, None)
        assert (room.waiting, room._taken) == (0, 0)

    asyncio.run(scenario())


def test_one_that_leaves_while_it_waits_is_not_waited_for() -> None:
    async def scenario() -> None:
        room = room_of(11)

        async def ask() -> None:
            async with room.lent(100):
                pass

        async with room.lent(100):
            leaving = asyncio.create_task(ask())
            staying = asyncio.create_task(ask())
            await asyncio.sleep(0.01)
            leaving.cancel()
            await asyncio.sleep(0.01)
            assert (room.waiting, staying.done()) == (1, False)
        await staying
        assert (room.waiting, room._taken) == (0, 0)

    asyncio.run(scenario())


@pytest.mark.parametrize(("blocks", "most"), [(3, 1), (5, 2), (100, 6)])
@pytest.mark.parametrize("stream", [False, True])
def test_decode_gets_no_more_requests_than_it_has_room_for(blocks: int, most: int, stream: bool) -> None:
    """Each comes to 20 tokens, which are two blocks of 16."""

    async def scenario() -> None:
        prefill, decode = Fake(), Fake()
        prefill.answer = (200, {"choices": [], "kv_transfer_params": PARAMS, "usage": {"prompt_tokens": 17}})
        decode.seconds, decode.metrics, decode.longest = 0.05, CACHE % blocks, 1000
        async with proxied(prefill, decode) as (client, _):
            asked = {"model": "m", "prompt": "Hello", "max_tokens": 3, "stream": stream}
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(client.post("/v1/completions", json=asked)) for _ in range(6)]
            for task in tasks:
                assert task.result().status == 200
                await task.result().read()
            assert decode.most == most
            told = await (await client.get("/metrics")).text()
            assert "pdtrim_proxy_waiting_for_room 0" in told

    asyncio.run(scenario())


def test_an_answer_of_unsaid_length_has_the_room_that_the_operator_says() -> None:
    async def scenario(limits: Limits) -> int:
        prefill, decode = Fake(), Fake()
        prefill.answer = (200, {"choices": [], "kv_transfer_params": PARAMS, "usage": {"prompt_tokens": 10}})
        decode.seconds, decode.metrics, decode.longest = 0.05, CACHE % 9, 128
        async with proxied(prefill, decode, limits=limits) as (client, _):
            asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}]}
            async with asyncio.TaskGroup() as group:
                for _ in range(4):
                    group.create_task(client.post("/v1/chat/completions", json=asked))
        return decode.most

    assert asyncio.run(scenario(Limits())) == 1
    assert asyncio.run(scenario(Limits(answer_tokens=22))) == 4
