"""The plain way of the benchmarks measures the same thing as ours, so that the comparison is one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Drop, Plan, Removal, StagedModel
from pdtrim_core.testing import tiny_model
from pdtrim_core.trunk import Trunk
from tests.unit.model.test_stages import some_items

FILE = Path(__file__).parents[3] / "benchmarks" / "plain_way.py"


@pytest.fixture(scope="module")
def plain_way() -> Any:
    spec = importlib.util.spec_from_file_location("plain_way", FILE)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["plain_way"] = module
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "opt", "gpt-neox"])
def test_a_copy_without_blocks_scores_as_the_unified_plan(plain_way: Any, family: str) -> None:
    model, items = tiny_model(family), some_items()[:3]
    removed = (0, 3)
    pruned = plain_way.without_blocks(model, removed)
    ours = StagedModel(Trunk(model), Plan.unified(Removal(map(Drop, removed)))).loglikelihoods(items)
    for item, sums in zip(items, ours, strict=True):
        for choice, expected in zip(item.choices, sums, strict=True):
            tokens = torch.tensor([[*item.prompts[0], *choice]])
            with torch.inference_mode():
                logprobs = pruned(input_ids=tokens, use_cache=True).logits[0].log_softmax(-1)
            places = range(len(item.prompts[0]) - 1, tokens.shape[1] - 1)
            found = sum(float(logprobs[place, tokens[0, place + 1]]) for place in places)
            # Rounding of float32; one block more or less changes tenths of a nat.
            assert found == pytest.approx(expected, abs=1e-4)


def test_a_copy_without_blocks_shares_weights_and_leaves_the_model_alone(plain_way: Any) -> None:
    model = tiny_model("llama")
    blocks: Any = model.blocks
    pruned = plain_way.without_blocks(model, [1])
    assert len(pruned.model.layers) == pruned.config.num_hidden_layers == model.block_count - 1
    assert [block.self_attn.layer_idx for block in pruned.model.layers] == list(range(model.block_count - 1))
    assert {id(tensor) for tensor in pruned.parameters()} <= {id(tensor) for tensor in model.model.parameters()}
    assert [block.self_attn.layer_idx for block in blocks] == list(range(model.block_count))
    assert model.model.config.num_hidden_layers == model.block_count
