"""A pair of a tiny Qwen2 over NIXL: the tokens of the reference, the bytes of the formula, and what happens when a part dies."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest


@pytest.fixture(scope="module")
def pair(make_tiny: Callable[[str], Any], run_pair: Callable[..., Any]) -> Any:
    return run_pair(make_tiny("qwen2"))


def _blocks(prompts: Any) -> int:
    return sum(-(-len(prompt) // 32) for prompt in prompts)


def test_tokens_and_bytes_are_those_of_the_reference(pair: Any) -> None:
    subject = pair.subject
    before = pair.metric("vllm:nixl_bytes_transferred_sum")
    assert pair.complete_all(subject.prompts) == [subject.expected(prompt) for prompt in subject.prompts]
    moved = pair.metric("vllm:nixl_bytes_transferred_sum") - before
    assert moved == subject.bytes_a_block * _blocks(subject.prompts)


def test_a_stream_has_the_same_tokens(pair: Any) -> None:
    prompt = pair.subject.prompts[-1]
    events = list(pair.stream(pair.question(prompt)))
    assert events[-1] == "[DONE]"
    tokens = [token for event in events[:-1] for token in event["choices"][0]["token_ids"]]
    assert tokens == pair.subject.expected(prompt)


def test_a_first_token_that_ends_the_sequence_ends_it(pair: Any) -> None:
    # Prefill's own token is one of these too, whatever the prompt: it must not end the hand-over.
    answer = pair.complete(pair.subject.ends_at_once)
    assert answer.tokens == pair.subject.expected(pair.subject.ends_at_once)
    assert len(answer.tokens) == 1
    assert answer.data["choices"][0]["finish_reason"] == "stop"


def test_what_ends_an_answer_early_does_not_end_prefill(pair: Any) -> None:
    prompt = pair.subject.prompts[-2]
    wanted = pair.subject.expected(prompt)
    asked = {**pair.question(prompt), "stop_token_ids": [0, wanted[3]], "min_tokens": 2}
    assert pair.post(asked).tokens == wanted[: wanted.index(wanted[3], 2) + 1]


def test_what_a_pair_cannot_do_is_refused(pair: Any) -> None:
    asked = pair.question(pair.subject.prompts[3])
    refused: tuple[dict[str, Any], ...] = (
        {"prompt_logprobs": 1},
        {"echo": True},
        {"best_of": 2},
        {"kv_transfer_params": {}},
    )
    for more in refused:
        answer = pair.post({**asked, **more})
        assert answer.status == 400, more
        assert next(iter(more)).split("_")[0] in answer.data["error"]["message"]
    assert pair.post({**asked, "model": "other"}).status == 404


def test_several_prompts_with_several_answers_are_each_handed_over(pair: Any) -> None:
    prompts = [list(prompt) for prompt in pair.subject.prompts[-8:]]
    wanted = [pair.subject.expected(prompt) for prompt in prompts for _ in range(2)]
    before = pair.metric("vllm:nixl_bytes_transferred_sum")
    asked = {**pair.question(prompts[0]), "prompt": prompts, "n": 2}
    answer = pair.post(asked)
    assert answer.status == 200, answer.data
    assert [choice["token_ids"] for choice in answer.data["choices"]] == wanted
    assert answer.data["usage"]["prompt_tokens"] == sum(map(len, prompts))
    assert answer.data["usage"]["completion_tokens"] == sum(map(len, wanted))
    moved = pair.metric("vllm:nixl_bytes_transferred_sum") - before
    assert moved == 2 * pair.subject.bytes_a_block * _blocks(prompts)
    found: dict[int, list[int]] = {number: [] for number in range(16)}
    events = list(pair.stream({**asked, "stream_options": {"include_usage": True}}))
    assert events.pop() == "[DONE]"
    usage = events.pop()["usage"]
    assert {key: usage[key] for key in usage if usage[key]} == {
        key: value for key, value in answer.data["usage"].items() if value
    }
    for event in events:
        for choice in event["choices"]:
            found[choice["index"]] += choice["token_ids"]
    assert list(found.values()) == wanted


def test_a_server_of_another_plan_does_not_answer(pair: Any) -> None:
    asked = {**pair.question(pair.subject.prompts[3]), "model": pair.subject.export.name + "@0123456789ab"}
    assert pair.post(asked, at="prefill").status == 404
    assert pair.post(asked, at="decode").status == 404


def test_a_request_of_a_decode_that_stands_still_ends_and_those_behind_it_are_right(pair: Any) -> None:
    prompt = pair.subject.prompts[-1]
    pair.servers["decode"].signal(signal.SIGSTOP)
    started = time.monotonic()
    stopped = pair.complete(prompt)
    assert stopped.status == 502
    assert "it says nothing about its health" in stopped.data["error"]["message"]
    assert time.monotonic() - started < 60
    # vLLM's own lease ends after 30 seconds, and what is fetched then may be another request's.
    time.sleep(max(0, 75 - (time.monotonic() - started)))
    pair.servers["decode"].signal(signal.SIGCONT)
    assert pair.complete(prompt).tokens == pair.subject.expected(prompt)
    log = pair.servers["prefill"].log.read_text(errors="replace")
    assert "before lease expired" not in log
    assert "Potentially invalid KV" not in log


def test_decode_that_dies_gives_an_error_and_the_next_request_is_right(pair: Any) -> None:
    subject = pair.subject
    prompt = subject.prompts[-1]
    # Far from its end when its first token is here, also where this test gets less of the processor than the servers.
    forever = {**pair.question(subject.prompts[0], 600), "ignore_eos": True}
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(pair.post, forever)
        events = []
        for event in pair.stream(forever):
            events.append(event)
            if len(events) == 5:
                pair.kill("decode")
        assert "error" in events[-1]
        assert "[DONE]" not in events
        assert waiting.result().status == 502
    assert pair.complete(prompt).status in (502, 503)
    pair.start("decode")
    assert pair.complete_all(subject.prompts[-6:]) == [subject.expected(prompt) for prompt in subject.prompts[-6:]]


def test_prefill_that_dies_never_gives_wrong_tokens(pair: Any) -> None:
    subject = pair.subject
    prompt = subject.prompts[-3]
    name = subject.export.name
    params = {"do_remote_decode": True, "do_remote_prefill": False}
    asked = {"model": name, "prompt": list(prompt), "max_tokens": 1, "ignore_eos": True, "kv_transfer_params": params}
    stale = {**pair.question(prompt), "kv_transfer_params": pair.post(asked, at="prefill").data["kv_transfer_params"]}
    with ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(pair.complete, prompt) for prompt in subject.prompts]
        time.sleep(0.5)
        pair.kill("prefill")
        for prompt, answer in zip(subject.prompts, answers, strict=True):
            found = answer.result()
            assert found.status != 200 or found.tokens == subject.expected(prompt)
    assert pair.complete(subject.prompts[5]).status in (502, 503)
    assert pair.post(stale, at="decode").status >= 500
    pair.start("prefill")
    assert pair.post(stale, at="decode").status >= 500
    assert pair.complete_all(subject.prompts[-6:]) == [subject.expected(prompt) for prompt in subject.prompts[-6:]]
