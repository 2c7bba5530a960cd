"""A recovered pair of the real model on the real engine: other weights and a table of first tokens, the reference's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import Drop, KvOnly, Plan, Removal
from pdtrim_core.api import python_reference
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstTokensOf, LayerOf
from pdtrim_core.testing import recovery_context

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from tests.serve.conftest import Pair, Subject

DECODE = Removal(map(Drop, (13, 14, 15, 17, 19)))
PLAN = Plan(Removal(map(KvOnly, range(24, 30))), DECODE)
TEXTS, TOKENS = 24, 64
PROMPTS = 20
RECOVERIES: dict[str, dict[str, Any]] = {"exact-first-token": {}, "kv-refit": {"ridge": 1.0}, "fold": {"ridge": 1.0}}
"""With strong pulls, since there are few tokens."""


@pytest.fixture(scope="module")
def recovered(smollm: BlockModel, make_subject: Callable[..., Subject]) -> Subject:
    """The 135M model without five blocks in decode, prefill ending six blocks early, recovered by all closed forms."""
    from pdtrim_core import load_plugins

    ids = smollm.tokenizer.encode(" ".join(python_reference()[:400]), add_special_tokens=False)
    opening = smollm.tokenizer.bos_token_id
    texts = [[opening, *ids[start : start + TOKENS - 1]] for start in range(0, TEXTS * TOKENS, TOKENS)]
    context = recovery_context(smollm, PLAN, texts[4:], check=texts[:4], openings=[opening])
    host = load_plugins()
    before = context.divergence()
    for name, options in RECOVERIES.items():
        recovery: Any = host.find("recovery", name).component(**options)
        recovery.recover(context)
    assert context.divergence() < before
    prompts = tuple((opening, *ids[start : start + 5 + 13 * number]) for number, start in enumerate(range(5000, 5000 + PROMPTS)))
    return make_subject(smollm, PLAN, context.pair.modules, prompts, "smollm")


def test_tokens_are_those_of_the_reference(recovered: Subject, run_pair: Callable[..., Pair]) -> None:
    modules = recovered.two_phase._modules
    assert {key.stage for key in modules if isinstance(key, LayerOf)} == {"prefill", "decode"}
    assert any(isinstance(key, FirstTokensOf) for key in modules)
    expected = [recovered.expected(prompt) for prompt in recovered.prompts]
    bare = TwoPhaseModel(recovered.model, recovered.plan, {})
    assert [bare.generate(prompt, len(made)) for prompt, made in zip(recovered.prompts, expected, strict=True)] != expected
    pair = run_pair(recovered, kv_only="cache", arguments=())
    assert pair.complete_all(recovered.prompts) == expected
