"""One request as two: nothing ends prefill early, nothing reaches decode without K/V, and what a pair cannot do is refused."""

from __future__ import annotations

from typing import Any

import pytest

from pdtrim_plugins.vllm.proxy.handoff import HandOverError, RefusedError, check, for_decode, for_prefill

ASKED = {"model": "m", "prompt": "Hello", "max_tokens": 9}
PARAMS = {
    "do_remote_prefill": True,
    "do_remote_decode": False,
    "remote_block_ids": [[3, 4]],
    "remote_engine_id": "e",
    "remote_request_id": "r",
    "remote_host": "h",
    "remote_port": 1,
    "tp_size": 1,
}


def test_prefill_is_asked_for_one_token_that_nothing_ends() -> None:
    sampling: dict[str, Any] = {"stop": ["."], "stop_token_ids": [1], "min_tokens": 5, "logprobs": 3, "stream": True}
    told: dict[str, Any] = {"stream_options": {"include_usage": True}, "response_format": {"type": "json_object"}, "n": 1}
    asked = for_prefill({**ASKED, **sampling, **told}, "m@1")
    assert asked == {
        "model": "m@1",
        "prompt": "Hello",
        "max_tokens": 1,
        "ignore_eos": True,
        "stream": False,
        "kv_transfer_params": {"do_remote_decode": True, "do_remote_prefill": False},
    }


def test_a_chat_keeps_all_that_makes_its_prompt() -> None:
    chat = {
        "model": "m",
        "messages": [{"role": "user", "content": "Hi"}],
        "tools": [{"type": "function"}],
        "tool_choice": "auto",
        "chat_template_kwargs": {"enable_thinking": False},
        "continue_final_message": True,
    }
    asked = for_prefill({**chat, "max_completion_tokens": 50, "top_logprobs": 2}, "m@1")
    assert {key: asked[key] for key in chat if key != "model"} == {key: chat[key] for key in chat if key != "model"}
    assert (asked["max_tokens"], asked["max_completion_tokens"]) == (1, 1)
    assert "top_logprobs" not in asked


def test_decode_is_asked_what_the_client_asked_and_told_where_the_kv_are() -> None:
    asked = for_decode({**ASKED, "stop": ["."]}, "m@1", {"kv_transfer_params": PARAMS})
    assert asked == {**ASKED, "model": "m@1", "stop": ["."], "kv_transfer_params": PARAMS}


def test_storage_needs_no_words() -> None:
    assert "kv_transfer_params" not in for_prefill(ASKED, "m@1", storage=True)
    assert for_decode(ASKED, "m@1", {"usage": {"prompt_tokens": 2}}, storage=True) == {**ASKED, "model": "m@1"}


def test_a_prompt_of_one_token_would_end_decode_where_kv_go_through_files() -> None:
    with pytest.raises(HandOverError, match="cannot take a prompt of one token: use NIXL"):
        for_decode(ASKED, "m@1", {"usage": {"prompt_tokens": 1}}, storage=True)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "prefill answered without kv_transfer_params: it runs with no connector, or the request was aborted"),
        ({"kv_transfer_params": None}, "prefill answered without kv_transfer_params: "),
        (
            {"kv_transfer_params": {**PARAMS, "remote_block_ids": [[]]}},
            "prefill's kv_transfer_params name no K/V to fetch (without: blocks)",
        ),
        ({"kv_transfer_params": {**PARAMS, "do_remote_prefill": False}}, "prefill's kv_transfer_params name no K/V to fetch"),
        (
            {"kv_transfer_params": {**PARAMS, "remote_host": None, "remote_port": None}},
            "prefill's kv_transfer_params name no K/V to fetch (without: remote_host, remote_port)",
        ),
    ],
)
def test_no_request_reaches_decode_without_kv(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(HandOverError) as caught:
        for_decode(ASKED, "m@1", answer)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"prompt_logprobs": 0}, "prompt_logprobs: prefill is a pruned model without a head"),
        ({"echo": True}, "echo: a pair does not return the prompt; put it in front of the answer yourself"),
        ({"best_of": 3}, "best_of: a pair does not choose among answers; ask for several with n"),
        ({"use_beam_search": True}, "use_beam_search: the K/V of a prompt are handed over once"),
        ({"kv_transfer_params": {}}, "kv_transfer_params: the proxy makes them itself; leave them out"),
        ({"prompt_embeds": "x"}, "prompt_embeds: a pair takes text or token ids"),
    ],
)
def test_what_a_pair_cannot_do(more: dict[str, Any], message: str) -> None:
    with pytest.raises(RefusedError) as caught:
        check({**ASKED, **more})
    assert str(caught.value).startswith(message)


def test_what_says_nothing_is_not_refused() -> None:
    check({**ASKED, "echo": False, "n": 1, "best_of": None, "prompt_logprobs": None, "use_beam_search": False})
    check({**ASKED, "prompt": [1, 2, 3]})
    check({"model": "m", "messages": []})
