"""A decode server with room for few requests: they wait for each other, and each has the tokens of the reference."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.serving.commands import CPU_BLOCK

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject

LONGEST = 640
"""The longest text that the servers take, for which vLLM wants room."""
NEW = 160
AT_ONCE = 8
PREEMPTIONS = "vllm:num_preemptions_total"


@pytest.fixture(scope="module")
def small(make_tiny: Callable[[str], Subject], make_pair: Callable[..., Pair]) -> Iterator[Pair]:
    blocks = str(LONGEST // CPU_BLOCK + 1)
    pair = make_pair(make_tiny("llama"), decode=("--num-gpu-blocks-override", blocks))
    try:
        pair.start("prefill", "decode", "proxy")
        yield pair
    finally:
        pair.close()


def prompts_of(subject: Subject) -> list[tuple[int, ...]]:
    """Prompts that have no room together with their answers, but each two of them."""
    return [prompt for prompt in subject.prompts if 60 < len(prompt) < 140][:AT_ONCE]


def test_requests_wait_for_room_and_have_the_tokens_of_the_reference(small: Pair) -> None:
    prompts = prompts_of(small.subject)
    assert sum(map(len, prompts)) + NEW * len(prompts) > 2 * LONGEST
    with ThreadPoolExecutor(len(prompts)) as pool:
        answers = list(pool.map(lambda prompt: small.post(asked_of(small, prompt)), prompts))
    assert small.metric(PREEMPTIONS) == 0
    for prompt, answer in zip(prompts, answers, strict=True):
        expected = small.subject.two_phase.generate(prompt, NEW)  # up to a token that ends it
        assert len(answer.tokens) == NEW
        assert answer.tokens[: len(expected)] == expected


def test_without_the_proxy_the_same_requests_take_room_from_each_other(small: Pair) -> None:
    prompts = prompts_of(small.subject)
    model = {"model": small.subject.export.name}
    params = {"do_remote_decode": True, "do_remote_prefill": False}
    asked = [{**model, "prompt": list(p), "max_tokens": 1, "ignore_eos": True, "kv_transfer_params": params} for p in prompts]
    handed = [small.post(one, at="prefill").data["kv_transfer_params"] for one in asked]
    bodies = [{**asked_of(small, p), "kv_transfer_params": one} for p, one in zip(prompts, handed, strict=True)]
    with ThreadPoolExecutor(len(prompts)) as pool:
        list(pool.map(lambda body: small.post(body, at="decode"), bodies))
    assert small.metric(PREEMPTIONS) > 0


def asked_of(pair: Pair, prompt: tuple[int, ...]) -> dict[str, Any]:
    """The request for an answer that no token ends."""
    return {**pair.question(prompt, NEW), "ignore_eos": True}
