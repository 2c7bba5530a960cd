"""The other families: one start each, the tokens of the reference."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject


@pytest.mark.parametrize("family", ["mistral", "qwen3"])
def test_tokens_are_those_of_the_reference(
    family: str, make_tiny: Callable[[str], Subject], run_pair: Callable[..., Pair]
) -> None:
    subject = make_tiny(family)
    pair = run_pair(subject, kv_only="cache")
    assert pair.complete_all(subject.prompts) == [subject.expected(prompt) for prompt in subject.prompts]
