"""vLLM's example connector, which passes whole cache blocks through files: decode computes what is behind them itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject

BLOCK = 32


@pytest.fixture(scope="module")
def pair(make_tiny: Callable[[str], Subject], run_pair: Callable[..., Pair]) -> Pair:
    # The way without attention: nobody but our own operation tells the connector of these K/V.
    return run_pair(make_tiny("qwen2"), connector="example", kv_only="cache")


def recomputed(length: int) -> int:
    """Return how many tokens of a prompt decode runs: what is behind the whole cache blocks in front of its last token.

    Of a prompt with one token more than whole blocks it runs all: vLLM 0.32 writes the K/V of all these blocks, and looks for
    those of one block less.
    """
    return length if length % BLOCK == 1 else length - (length - 1) // BLOCK * BLOCK


def test_tokens_are_those_of_the_reference(pair: Pair) -> None:
    subject = pair.subject
    prompts = [prompt for prompt in subject.prompts if len(prompt) > 1]
    assert len(prompts) > 20
    assert pair.complete_all(prompts) == [subject.expected(prompt, recomputed(len(prompt))) for prompt in prompts]


def test_a_prompt_that_was_seen_before_is_answered_again(pair: Pair) -> None:
    prompt = pair.subject.prompts[-1]
    expected = pair.subject.expected(prompt, recomputed(len(prompt)))
    assert [pair.complete(prompt).tokens for _ in range(2)] == [expected] * 2


def test_a_prompt_of_one_token_does_not_end_decode(pair: Pair) -> None:
    answer = pair.complete(pair.subject.prompts[0])
    assert (answer.status, answer.data["error"]["message"]) == (
        502,
        "vLLM's example connector cannot take a prompt of one token: use NIXL",
    )
    assert pair.complete(pair.subject.prompts[1]).status == 200


def test_decode_that_runs_other_tokens_itself_gives_other_answers(pair: Pair) -> None:
    # If it made no difference who computed these K/V, the test above could not fail.
    subject = pair.subject
    long = [prompt for prompt in subject.prompts if len(prompt) > 2 * BLOCK]
    assert any(subject.expected(prompt, recomputed(len(prompt))) != subject.expected(prompt, len(prompt)) for prompt in long)
