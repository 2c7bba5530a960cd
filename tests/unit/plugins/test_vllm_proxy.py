"""The proxy in front of two servers that only pretend: what each is asked, and what a client is told when one fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("aiohttp", reason="aiohttp comes with vLLM and is not installed")
from tests.unit.plugins.vllm_servers import PARAMS, Client, Fake, proxied

ASKED = {"model": "m", "prompt": "Hello", "max_tokens": 3, "stop": ["."]}
Talk = Callable[[Client], Awaitable[None]]


def talk(prefill: Fake, decode: Fake, what: Talk, *, storage: bool = False, without: str = "") -> None:
    """Talk to a proxy in front of two servers; `without` names one that is gone by then."""

    async def run() -> None:
        async with proxied(prefill, decode, storage=storage) as (client, servers):
            if without:
                assert (await client.get("/health")).status == 200
                prefill.asked.clear()
                decode.asked.clear()
                await servers[without].close()
            await what(client)

    asyncio.run(run())


def test_prefill_is_asked_first_and_decode_gets_its_kv() -> None:
    prefill, decode = Fake(), Fake()
    decode.answer = (200, {"choices": [{"text": " there"}]})

    async def what(client: Client) -> None:
        answer = await client.post("/v1/completions", json=ASKED, headers={"Authorization": "Bearer x", "X-Request-Id": "7"})
        assert (answer.status, await answer.json()) == (200, decode.answer[1])

    talk(prefill, decode, what)
    assert prefill.asked[0]["kv_transfer_params"] == {"do_remote_decode": True, "do_remote_prefill": False}
    assert (prefill.asked[0]["max_tokens"], prefill.asked[0]["ignore_eos"], "stop" in prefill.asked[0]) == (1, True, False)
    assert decode.asked == [{**ASKED, "model": "m@1", "kv_transfer_params": PARAMS}]
    for server in (prefill, decode):
        assert (server.headers[0]["Authorization"], server.headers[0]["X-Request-Id"]) == ("Bearer x", "7")


def test_a_stream_is_passed_on() -> None:
    decode = Fake()

    async def what(client: Client) -> None:
        asked = {"model": "m", "messages": [{"role": "user", "content": "Hi"}], "stream": True}
        answer = await client.post("/v1/chat/completions", json=asked)
        assert answer.content_type == "text/event-stream"
        assert (await answer.text()).split("\n\n")[-3:] == ['data: {"choices": [{"text": "two"}]}', "data: [DONE]", ""]

    talk(Fake(), decode, what)
    assert decode.asked[0]["stream"] is True


def test_a_stream_that_breaks_says_so_and_never_that_it_is_done() -> None:
    decode = Fake()
    decode.broken = True

    async def what(client: Client) -> None:
        events = (await (await client.post("/v1/completions", json={**ASKED, "stream": True})).text()).strip().split("\n\n")
        assert events[0] == 'data: {"choices": [{"text": "one"}]}'
        assert "decode did not answer to the end" in json.loads(events[-1].removeprefix("data: "))["error"]["message"]
        assert "data: [DONE]" not in events

    talk(Fake(), decode, what)


@pytest.mark.parametrize(
    ("without", "message"), [("prefill", "prefill did not answer: "), ("decode", "decode did not answer to the end: ")]
)
def test_a_server_that_is_gone_is_an_error(without: str, message: str) -> None:
    prefill, decode = Fake(), Fake()

    async def what(client: Client) -> None:
        answer = await client.post("/v1/completions", json=ASKED)
        assert answer.status == 502
        assert (await answer.json())["error"]["message"].startswith(message)
        # From then on it looks first whether both are there.
        assert (await client.post("/v1/completions", json=ASKED)).status == 503
        assert (await client.get("/health")).status == 503

    talk(prefill, decode, what, without=without)
    assert decode.asked == []


def test_prefill_without_kv_keeps_a_request_from_decode() -> None:
    prefill, decode = Fake(), Fake()
    prefill.answer = (200, {"choices": []})

    async def what(client: Client) -> None:
        answer = await client.post("/v1/completions", json=ASKED)
        assert answer.status == 502
        assert "without kv_transfer_params" in (await answer.json())["error"]["message"]

    talk(prefill, decode, what)
    assert decode.asked == []


def test_what_prefill_refuses_the_client_is_told() -> None:
    prefill, decode = Fake(), Fake()
    prefill.answer = (400, {"error": {"message": "too long"}})

    async def what(client: Client) -> None:
        answer = await client.post("/v1/completions", json=ASKED)
        assert (answer.status, await answer.json()) == prefill.answer

    talk(prefill, decode, what)
    assert decode.asked == []


def test_servers_of_two_plans_are_not_served() -> None:
    prefill, decode = Fake(plan="1"), Fake(plan="2")

    async def what(client: Client) -> None:
        for answer in (await client.get("/health"), await client.post("/v1/completions", json=ASKED)):
            assert answer.status == 503
            assert (await answer.json())["error"]["message"] == (
                "prefill serves m, m@1 and decode m, m@2: they need the same MODEL@PLAN as second --served-model-name, or have "
                "different plans"
            )

    talk(prefill, decode, what)
    assert prefill.asked == decode.asked == []


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({**ASKED, "echo": True}, 400, "echo: a pair does not return the prompt; put it in front of the answer yourself"),
        ({**ASKED, "model": "other"}, 404, "the model 'other' does not exist; there is m"),
        ([1], 400, "a request is a JSON object"),
        ("{", 400, "the request is no JSON: Expecting property name"),
    ],
)
def test_requests_that_are_refused(asked: Any, status: int, message: str) -> None:
    prefill, decode = Fake(), Fake()

    async def what(client: Client) -> None:
        body = asked if isinstance(asked, str) else json.dumps(asked)
        answer = await client.post("/v1/completions", data=body, headers={"Content-Type": "application/json"})
        assert answer.status == status
        assert (await answer.json())["error"]["message"].startswith(message)

    talk(prefill, decode, what)
    assert prefill.asked == decode.asked == []


def test_a_request_may_leave_the_model_out_or_name_its_plan() -> None:
    decode = Fake()

    async def what(client: Client) -> None:
        for asked in ({"prompt": "Hello"}, {"prompt": "Hello", "model": "m@1"}):
            assert (await client.post("/v1/completions", json=asked)).status == 200

    talk(Fake(), decode, what)
    assert [asked["model"] for asked in decode.asked] == ["m@1", "m@1"]


def test_files_need_no_transfer_parameters() -> None:
    prefill, decode = Fake(), Fake()
    prefill.answer = (200, {"choices": [], "usage": {"prompt_tokens": 5}})

    async def what(client: Client) -> None:
        assert (await client.post("/v1/completions", json=ASKED)).status == 200

    talk(prefill, decode, what, storage=True)
    assert "kv_transfer_params" not in prefill.asked[0]
    assert decode.asked == [{**ASKED, "model": "m@1"}]


def test_a_key_is_for_the_proxys_own_questions_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    prefill, decode = Fake(), Fake()
    prefill.key = decode.key = "secret"

    async def what(client: Client) -> None:
        answer = await client.get("/health")
        assert answer.status == 503
        assert (await answer.json())["error"]["message"] == (
            "prefill does not say which models it has (401); has it an API key? Set VLLM_API_KEY"
        )
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        assert (await client.get("/health")).status == 200
        assert (await client.get("/v1/models")).status == 401
        assert (await client.post("/v1/completions", json=ASKED)).status == 200

    talk(prefill, decode, what)
    trial, of_client = prefill.headers
    assert trial["Authorization"] == "Bearer secret"
    assert "Authorization" not in of_client


def test_it_is_well_when_a_first_prompt_was_handed_over() -> None:
    prefill, decode = Fake(), Fake()

    async def what(client: Client) -> None:
        for _ in range(2):
            assert (await client.get("/health")).status == 200

    talk(prefill, decode, what)
    (asked,) = decode.asked
    assert (asked["model"], asked["max_tokens"], asked["kv_transfer_params"]) == ("m@1", 1, PARAMS)
    assert len(prefill.asked) == 1


@pytest.mark.parametrize(
    ("stage", "answer", "message"),
    [
        ("prefill", (400, {"error": "no"}), 'prefill took no first prompt: {"error": "no"}'),
        ("prefill", (200, {}), "no first prompt came to decode: prefill answered without kv_transfer_params"),
        ("decode", (500, {"error": "lost"}), 'decode took no first prompt: {"error": "lost"}'),
    ],
)
def test_a_pair_that_hands_nothing_over_is_not_well_and_may_become_so(stage: str, answer: Any, message: str) -> None:
    prefill, decode = Fake(), Fake()
    server = {"prefill": prefill, "decode": decode}[stage]
    good, server.answer = server.answer, answer

    async def what(client: Client) -> None:
        found = await client.get("/health")
        assert found.status == 503
        assert (await found.json())["error"]["message"].startswith(message)
        server.answer = good
        assert (await client.get("/health")).status == 200

    talk(prefill, decode, what)


def test_a_server_that_was_away_is_tried_again() -> None:
    decode = Fake()

    async def what(client: Client) -> None:
        for health, tries in ((200, 1), (500, 1), (200, 2)):
            decode.health = health
            found = await client.get("/health")
            assert (found.status == 200, len(decode.asked)) == (health == 200, tries)

    talk(Fake(), decode, what)


def test_two_who_ask_for_its_health_at_once_hear_of_the_same_failure() -> None:
    decode = Fake()
    decode.answer = (500, {"error": "lost"})

    async def what(client: Client) -> None:
        both = await asyncio.gather(client.get("/health"), client.get("/health"))
        assert [(found.status, "decode took no first prompt" in await found.text()) for found in both] == [(503, True)] * 2

    talk(Fake(), decode, what)


def test_a_first_prompt_may_take_longer_than_a_question_for_health(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_plugins.vllm.proxy.trial.SECONDS", 0.0)
    decode = Fake()

    async def what(client: Client) -> None:
        found = await client.get("/health")
        assert (found.status, (await found.json())["error"]["message"]) == (503, "a first prompt is being handed over")
        for _ in range(1000):
            if (await client.get("/health")).status == 200:
                return
            await asyncio.sleep(0.01)
        pytest.fail("it never became well")

    talk(Fake(), decode, what)
    assert len(decode.asked) == 1


def test_models_are_those_of_decode() -> None:
    async def what(client: Client) -> None:
        assert (await (await client.get("/v1/models")).json())["data"][0]["id"] == "m"

    talk(Fake(), Fake(), what)
