"""Shrunk blocks: what is left is what masking would leave, in both stages, and the K/V of kept heads are slices."""

from __future__ import annotations

from collections.abc import Mapping
from gc import collect
from weakref import ref

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, KvOnly, Plan, PlanError, Removal, Shrink
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.plan.plan import FirstToken
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

pytestmark = pytest.mark.numeric

HEAD, CHANNELS = Shrink(2, "attention", (1,)), Shrink(2, "mlp", (0, 3, 17, 40))
PLANS: Mapping[str, Plan] = {
    "decode-only heads": Plan(decode=Removal([HEAD])),
    "decode-only channels": Plan(decode=Removal([CHANNELS])),
    "both parts, prefill keeps the heads": Plan(Removal([CHANNELS]), Removal([HEAD, CHANNELS])),
    "both parts in both stages": Plan.unified(Removal([HEAD, CHANNELS, Drop(4)])),
    "fewer channels in prefill alone": Plan(Removal([CHANNELS])),
    "K/V only of a shrunk block": Plan(Removal([KvOnly(2)]), Removal([HEAD, CHANNELS])),
}
SHRINKING = [family for family in FAMILIES if set(tiny_model(family).sizes.blocks[0].units) == {"attention", "mlp"}]


def test_these_families_can_lose_heads_and_channels() -> None:
    assert SHRINKING == ["gemma3", "llama", "mistral", "opt", "qwen2", "qwen3"]


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", SHRINKING)
def test_one_pass_agrees_with_two_phases(family: str, first_token: FirstToken) -> None:
    model, items = tiny_model(family), [*some_items()[2:4], *some_items()[-1:]]
    prefix_cache = PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64, packed=True))
    for plan in PLANS.values():
        staged = StagedModel(prefix_cache, plan)
        for sums, expected, item in zip(staged.loglikelihoods(items), two_phase_sums(staged, items), items, strict=True):
            for one, other, choice in zip(sums, expected, item.choices, strict=True):
                assert one == pytest.approx(other, abs=1e-4 * len(choice))


def silence(model: BlockModel, shrink: Shrink) -> None:
    """Zero what units write, which is the same as their not being there."""
    out = model.units(shrink.block).projections(shrink.part)[-1]
    assert isinstance(out, torch.nn.Linear)
    with torch.no_grad():
        out.weight[:, model.units(shrink.block).numbers(out, shrink.part, shrink.units, out=True)] = 0


@pytest.mark.parametrize("family", SHRINKING)
def test_a_block_less_some_units_is_the_block_with_those_units_silent(family: str) -> None:
    thin, silent, items = tiny_model(family), tiny_model(family), some_items()
    found = StagedModel(
        PrefixCache(thin, ExecutionOptions(batch_tokens=64)), Plan.unified(Removal([HEAD, CHANNELS]))
    ).loglikelihoods(items)
    for shrink in (HEAD, CHANNELS):
        silence(silent, shrink)
    expected = StagedModel(PrefixCache(silent, ExecutionOptions(batch_tokens=64)), Plan()).loglikelihoods(items)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("family", SHRINKING)
def test_the_sizes_of_a_shrunk_block_are_those_of_its_weights(family: str) -> None:
    model = tiny_model(family)
    for shrinks in ([HEAD], [CHANNELS], [HEAD, CHANNELS]):
        thin = model.narrowed(tuple(shrinks), {})
        held = sum(parameter.numel() for parameter in thin.parameters())
        plan = Plan.unified(Removal(shrinks))
        dense = model.sizes.kept_parameters(Plan(), "decode")
        assert dense - model.sizes.kept_parameters(plan, "decode") == model.sizes.blocks[2].parameters - held


def test_whole_weights_are_shared_and_the_dense_block_stays_as_it_was() -> None:
    model = tiny_llama()
    before = {name: tensor.clone() for name, tensor in model.blocks[2].state_dict().items()}
    thin = model.narrowed((CHANNELS,), {})
    assert thin.get_submodule("self_attn.q_proj").weight is model.blocks[2].get_submodule("self_attn.q_proj").weight
    assert thin.get_submodule("mlp.down_proj").weight.shape == (32, 44)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.blocks[2].state_dict().items())
    assert model.narrowed((CHANNELS,), {}) is thin


def test_narrowed_blocks_go_with_what_runs_them() -> None:
    model = tiny_llama()
    staged = StagedModel(PrefixCache(model), Plan(decode=Removal([CHANNELS])))
    staged.loglikelihoods(some_items()[:2])
    of_staged = ref(model.narrowed((CHANNELS,), {}))
    assert of_staged() is not None, "the plan runs it, so the same one is given"
    del staged
    collect()
    assert of_staged() is None


def test_an_output_of_its_own_takes_the_place_of_the_dense_one() -> None:
    model = tiny_llama()
    own = torch.nn.Linear(44, 32)
    assert model.narrowed((CHANNELS,), {CHANNELS: own}).get_submodule("mlp.down_proj") is own


def test_shipped_bytes_are_those_of_the_kept_heads() -> None:
    sizes = tiny_llama().sizes
    assert sizes.kv_bytes(Plan(decode=Removal([HEAD]))) == sizes.kv_bytes(Plan()) - 8 * 2 * 4


@pytest.mark.parametrize(
    ("family", "shrink", "problem"),
    [
        ("llama", Shrink(1, "attention", (2,)), "block 1 has K/V heads 0 to 1, and the plan removes 2"),
        ("llama", Shrink(1, "attention", (0, 1)), "block 1 would lose all of its 2 K/V heads: drop the block, or keep one"),
        ("mixtral", Shrink(1, "mlp", (0,)), "block 1 cannot lose MLP channels: this family's projections are fused"),
        ("gpt-neox", Shrink(1, "attention", (0,)), "block 1 cannot lose K/V heads: this family's projections are fused"),
    ],
)
def test_what_a_block_cannot_lose_is_said(family: str, shrink: Shrink, problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        StagedModel(PrefixCache(tiny_model(family)), Plan.unified(Removal([shrink]))).loglikelihoods(some_items())
