"""A pair whose prefill knows some first tokens: the tokens of the reference, for prompts with a known first token and others."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstTokensOf

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject


@pytest.mark.parametrize("arguments", [("--enforce-eager",), ()])
def test_tokens_are_those_of_the_reference(
    arguments: tuple[str, ...], make_tiny: Callable[..., Subject], run_pair: Callable[..., Pair]
) -> None:
    subject = make_tiny("qwen3", known=True)
    pair = run_pair(subject, kv_only="cache", arguments=arguments)
    expected = [subject.expected(prompt) for prompt in subject.prompts]
    bare = {key: module for key, module in subject.two_phase._modules.items() if not isinstance(key, FirstTokensOf)}
    without = TwoPhaseModel(subject.model, subject.plan, bare)
    assert [without.generate(prompt, len(made)) for prompt, made in zip(subject.prompts, expected, strict=True)] != expected
    assert pair.complete_all(subject.prompts) == expected
