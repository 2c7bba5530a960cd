"""Pairs whose blocks differ in their MLPs, and got biases: both servers have the class of ours, the reference's tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core import Drop, KvOnly, Plan, Removal, Shrink
from pdtrim_core.testing import tiny_model
from tests.serve.conftest import TINY

if TYPE_CHECKING:
    from tests.serve.conftest import Pair, Subject

PROMPTS = tuple(tuple(token % 250 for token in range(start, start + length)) for start, length in enumerate((1, 5, 33, 64, 200)))
WIDE = {2: 32, 3: 128, 5: 200, 6: 8}
"""Channels that blocks of decode lose; prefill loses those of two of them."""


@pytest.fixture(scope="module", params=["llama", "qwen2", "qwen3"])
def narrowed(request: pytest.FixtureRequest, make_subject: Callable[..., Subject]) -> Subject:
    """A tiny model without a block, whose other MLPs have widths of their own, most of them with a bias behind."""
    more: dict[str, Any] = {"head_dim": 64} if request.param == "qwen3" else {}
    model = tiny_model(request.param, **{**TINY, **more})
    thin = {block: Shrink(block, "mlp", tuple(range(count))) for block, count in WIDE.items()}
    plan = Plan(Removal([Drop(0), thin[3], thin[5], KvOnly(7)]), Removal([Drop(0), *thin.values()]))
    modules = {thin[block]: _biased(model.units(block).projections("mlp")[-1], thin[block]) for block in (2, 3, 5)}
    return make_subject(model, plan, modules, PROMPTS, f"narrowed-{request.param}")


def _biased(dense: Any, shrink: Shrink) -> torch.nn.Linear:
    """Return what is left of a projection, with a bias that tokens notice."""
    left = torch.nn.Linear(dense.in_features - len(shrink.units), dense.out_features)
    left.weight.data = dense.weight[:, len(shrink.units) :].detach().clone()
    left.bias.data = torch.randn(dense.out_features, generator=torch.Generator().manual_seed(shrink.block))
    return left


def test_tokens_are_those_of_the_reference(narrowed: Subject, run_pair: Callable[..., Pair]) -> None:
    expected = [narrowed.expected(prompt) for prompt in narrowed.prompts]
    pair = run_pair(narrowed, kv_only="cache")
    assert pair.complete_all(narrowed.prompts) == expected
