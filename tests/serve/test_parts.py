"""A pair of the real model whose blocks run without their attention or their MLP, on the real engine: the reference's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pdtrim_core import Drop, DropPart, KvOnly, Plan, Removal
from pdtrim_core.api import python_reference

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel
    from tests.serve.conftest import Pair, Subject

DECODE = Removal([*(DropPart(block, "attention") for block in (13, 15, 16, 29)), DropPart(19, "mlp"), Drop(14)])
PLAN = Plan(Removal([DropPart(15, "attention"), DropPart(19, "mlp"), KvOnly(28)]), DECODE)
PROMPTS = 20


@pytest.fixture(scope="module")
def parted(smollm: BlockModel, make_subject: Callable[..., Subject]) -> Subject:
    ids = smollm.tokenizer.encode(" ".join(python_reference()[:400]), add_special_tokens=False)
    opening = smollm.tokenizer.bos_token_id
    prompts = tuple((opening, *ids[start : start + 5 + 13 * number]) for number, start in enumerate(range(5000, 5000 + PROMPTS)))
    return make_subject(smollm, PLAN, {}, prompts, "smollm")


@pytest.mark.model
def test_tokens_are_those_of_the_reference(parted: Subject, run_pair: Callable[..., Pair]) -> None:
    expected = [parted.expected(prompt) for prompt in parted.prompts]
    pair = run_pair(parted, kv_only="cache", arguments=())
    assert pair.complete_all(parted.prompts) == expected
