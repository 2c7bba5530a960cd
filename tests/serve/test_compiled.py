"""With torch.compile: what nobody in prefill reads is computed all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject


@pytest.mark.parametrize("kv_only", ["cache", "attention"])
def test_tokens_are_those_of_the_reference(
    kv_only: str, make_tiny: Callable[[str], Subject], run_pair: Callable[..., Pair]
) -> None:
    subject = make_tiny("qwen2")
    pair = run_pair(subject, kv_only=kv_only, arguments=())
    assert pair.complete_all(subject.prompts) == [subject.expected(prompt) for prompt in subject.prompts]
    assert "CompilationMode.DYNAMO_TRACE_ONCE" in pair.servers["prefill"].log.read_text(errors="replace")
