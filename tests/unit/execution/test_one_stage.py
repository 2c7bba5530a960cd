"""One stage as a model of its own: it runs what the stage runs and no more, and K/V that were cut short are the whole block's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core import Drop, KvOnly, Merge, Plan, Removal, Shrink
from pdtrim_core.execution.one_stage import stage_alone
from pdtrim_core.execution.stage_modules import as_stage, steps_of
from pdtrim_core.testing import FAMILIES, tiny_model

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel

pytestmark = pytest.mark.numeric

IDS = torch.arange(40)[None] % 250
TAIL = Plan(prefill=Removal([Drop(2), KvOnly(4), Drop(5)]), decode=Removal([Drop(2), Drop(5)]))


def filled(model: BlockModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    from transformers import DynamicCache

    cache = DynamicCache()
    with torch.inference_mode():
        model.model.base_model(input_ids=IDS, past_key_values=cache, use_cache=True)
    return [(layer.keys, layer.values) for layer in cache.layers]


def calls_of(model: BlockModel, part: str, block: int) -> list[Any]:
    seen: list[Any] = []
    module = model.blocks[block].get_submodule(part)
    module.register_forward_hook(lambda *_: seen.append(part))
    return seen


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_block_that_ends_at_its_kv_made_the_same_ones(family: str) -> None:
    model = tiny_model(family)
    with as_stage(model, steps_of(model, TAIL, "prefill", {})):
        whole = filled(model)
    with stage_alone(model, TAIL, "prefill", {}):
        short = filled(model)
    assert len(short) == 4
    for (keys, values), (others, others_too) in zip(whole, short, strict=True):
        assert torch.equal(keys, others)
        assert torch.equal(values, others_too)


def test_a_block_that_ends_at_its_kv_runs_nothing_behind_them() -> None:
    model = tiny_model()
    mlp, out = calls_of(model, "mlp", 4), calls_of(model, "self_attn.o_proj", 4)
    before = calls_of(model, "mlp", 3)
    with stage_alone(model, TAIL, "prefill", {}):
        filled(model)
    assert (len(before), mlp, out) == (1, [], [])


def test_the_model_is_left_as_it_was() -> None:
    model = tiny_model()
    with torch.inference_mode():
        whole = model.model(input_ids=IDS).logits
        with stage_alone(model, TAIL, "prefill", {}):
            filled(model)
        with pytest.raises(ZeroDivisionError), stage_alone(model, TAIL, "decode", {}):
            _ = 1 / 0
        assert torch.equal(model.model(input_ids=IDS).logits, whole)
    assert not any("forward" in vars(module) for module in model.model.modules())


def test_the_kv_of_a_merge_that_decode_alone_made_end_there_too() -> None:
    model, merge = tiny_model(), Merge(2, 3)
    replacements: dict[Merge | Shrink, Any] = {merge: tiny_model(seed=1).blocks[0]}
    plan = Plan(decode=Removal([merge]))
    with as_stage(model, steps_of(model, plan, "prefill", replacements)):
        whole = filled(model)
    with stage_alone(model, plan, "prefill", replacements):
        short = filled(model)
    assert len(short) == 7
    assert all(torch.equal(a, b) for one, other in zip(whole, short, strict=True) for a, b in zip(one, other, strict=True))
