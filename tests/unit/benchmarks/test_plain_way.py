"""The plain way of the benchmarks measures the same thing as ours, so that the comparison is one."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, Plan, Removal
from pdtrim_core.data.items import calibrate
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import tiny_model
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.objectives import Accuracy
from tests.unit.execution.test_staged_model import some_items

pytestmark = pytest.mark.numeric

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
    ours = StagedModel(PrefixCache(model), Plan.unified(Removal(map(Drop, removed)))).loglikelihoods(items)
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


@pytest.mark.model
@pytest.mark.filterwarnings("ignore")  # the harness and what it imports warn about themselves
def test_the_harness_scores_a_pruned_copy_as_we_score_the_plan(plain_way: Any, smollm: BlockModel) -> None:
    pytest.importorskip("lm_eval")
    samples, removed = list(Mini().draw(6, Random(0))), (12, 20)
    items = calibrate(samples, [], smollm.tokenizer).items
    plain = plain_way.PlainWay(smollm, samples, items, batch_size=4)
    theirs, taken = plain.measure(removed)
    ours = StagedModel(
        PrefixCache(smollm, ExecutionOptions(packed=True)), Plan.unified(Removal(map(Drop, removed)))
    ).loglikelihoods(items)
    for sums, same in zip(ours, theirs, strict=True):
        # Float32 over 28 blocks and a sum of up to twenty tokens; the harness' log_softmax is off by 1e-5 a token.
        assert sums == pytest.approx(same, abs=2e-3)
    assert plain.values(Accuracy(), theirs) == plain.values(Accuracy(), ours)
    assert taken.cpu > 0
