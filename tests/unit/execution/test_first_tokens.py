"""First tokens that prefill knows from a table: one pass agrees with two phases, and their K/V are the dense model's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, Item, KvOnly, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.batching import Firsts
from pdtrim_core.execution.first_tokens import OTHERS, FirstTokens, depths_of, first_tokens_of
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.recovered_weights import load_recovered, save_recovered
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.plan.plan import FirstTokensOf
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_recovered_layers import recovered
from tests.unit.execution.test_staged_model import (
    BLOCKS,
    FAMILIES_AND_KV,
    MERGE,
    PLANS,
    TAILS,
    replacements,
    some_items,
    two_phase_gaps,
    two_phase_sums,
)
from tests.unit.execution.test_two_phase import NEW, PAD, PROMPTS, WIDTH, batch

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from pdtrim_core.api import BlockModel
    from pdtrim_core.plan.plan import FirstToken

pytestmark = pytest.mark.numeric

MORE = {
    "K/V-only tail": Plan(prefill=Removal([KvOnly(block) for block in range(3, BLOCKS)])),
    "K/V only behind an early drop": Plan(Removal([Drop(1), KvOnly(4)]), Removal([Drop(1), Drop(2)])),
    "merge in decode behind a drop": Plan(Removal([Drop(1), Shrink(3, "mlp", (0, 5))]), Removal([Drop(1), MERGE])),
}
KV_ONLY = Plan(prefill=Removal([KvOnly(2), KvOnly(4)]))
EARLY = Plan.unified(Removal([Drop(1)]))


def with_table(model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module], tokens: set[int]) -> dict[Any, nn.Module]:
    """The modules of a plan, and the table of some first tokens where prefill loses anything."""
    depths = depths_of(plan, model.block_count)
    return {**modules, **({FirstTokensOf(plan): first_tokens_of(model, tokens, depths)} if depths else {})}


def firsts_of(items: list[Item]) -> set[int]:
    return {prompt[0] for item in items for prompt in item.prompts}


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize(("family", "kv"), FAMILIES_AND_KV)
def test_one_pass_agrees_with_two_phases_where_some_first_tokens_are_known(
    family: str, first_token: FirstToken, kv: bool
) -> None:
    model = tiny_model(family)
    items = [*some_items()[2:4], *some_items()[-1:]]
    known = {items[1].prompts[0][0], items[2].prompts[1][0]}
    plans = {**PLANS, **MORE, **(TAILS if first_token == "decode" else {})}
    if not model.layout.mlp:
        del plans["merge in decode behind a drop"]
    plans = {name: plan for name, plan in plans.items() if plan.prefill}

    def modules_of(plan: Plan) -> dict[Any, nn.Module]:
        return with_table(model, plan, recovered(model, plan, replacements(model), kv=kv), known)

    gaps = two_phase_gaps(model, plans, modules_of, items, first_token)
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_that_are_read_together_know_their_first_tokens_as_prompts_alone(family: str, first_token: FirstToken) -> None:
    model, plan = tiny_model(family), MORE["K/V only behind an early drop"]
    modules = with_table(model, plan, {}, {PROMPTS[0][0], PROMPTS[2][0]})
    two_phase = TwoPhaseModel(model, plan, modules, first_token=first_token)
    alone = [two_phase.generate(prompt, NEW) for prompt in PROMPTS]
    assert two_phase.greedy_batch(PROMPTS, NEW) == alone
    made_BT = two_phase.generate_batch(*batch(), max_length=WIDTH + NEW, do_sample=False, pad_token_id=PAD)
    for made, expected in zip(made_BT[:, WIDTH:].tolist(), alone, strict=True):
        assert made[: len(expected)] == expected


def prefill_s_kv(model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module], prompt: list[int]) -> list[torch.Tensor]:
    """The K and V `[head, token, 2 * head size]` that decode is handed over, a layer each."""
    with torch.inference_mode():
        pair = TwoPhaseModel(model, plan, modules)
        cache = pair.hand_over(pair._prefill(prompt)).cache
    return [torch.cat([entry.keys, entry.values], dim=-1)[0] for entry in cache.layers]


@pytest.mark.parametrize("plan", [EARLY, KV_ONLY, MORE["K/V-only tail"], Plan(Removal([Shrink(0, "mlp", (1, 2))]), Removal())])
def test_the_kv_of_a_known_first_token_are_the_dense_model_s_in_all_layers(plan: Plan) -> None:
    model, prompt = tiny_llama(), [7, 21, 4, 80]
    dense, without = prefill_s_kv(model, Plan(), {}, prompt), prefill_s_kv(model, plan, {}, prompt)
    found = prefill_s_kv(model, plan, with_table(model, plan, {}, {7}), prompt)
    unknown = prefill_s_kv(model, plan, with_table(model, plan, {}, {8}), prompt)
    kept = [slot.block for slot in plan.slots(BLOCKS)]
    for number, block in enumerate(kept):
        assert torch.allclose(found[number][:, 0], dense[block][:, 0], atol=1e-5)
        assert torch.equal(unknown[number], without[number])
    assert not torch.allclose(without[-1][:, 0], dense[-1][:, 0], atol=1e-2)
    assert not torch.allclose(found[-1][:, 2], dense[-1][:, 2], atol=1e-2)


def test_kv_weights_fitted_to_what_prefill_lacks_are_not_for_a_known_first_token() -> None:
    model, prompt = tiny_llama(), [7, 21, 4, 80]
    modules = recovered(model, KV_ONLY, {}, kv=True)
    fitted = {key: module for key, module in modules.items() if key.stage == "prefill" and key.block == 4}
    found = prefill_s_kv(model, KV_ONLY, with_table(model, KV_ONLY, fitted, {7}), prompt)
    dense = prefill_s_kv(model, Plan(), {}, prompt)
    plain = prefill_s_kv(model, KV_ONLY, with_table(model, KV_ONLY, {}, {7}), prompt)
    assert torch.allclose(found[4][:, 0], dense[4][:, 0], atol=1e-5)
    assert not torch.allclose(found[4][:, 1], plain[4][:, 1], atol=1e-2)


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_a_first_token_that_is_in_no_table_scores_as_without_one(first_token: FirstToken) -> None:
    model, items = tiny_llama(), some_items()
    cache = PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64))
    others = set(range(256)) - firsts_of(items)
    for plan in (EARLY, KV_ONLY):
        staged, plain = StagedModel(cache, plan, with_table(model, plan, {}, others)), StagedModel(cache, plan)
        assert staged.loglikelihoods(items) == plain.loglikelihoods(items)
        known = StagedModel(cache, plan, with_table(model, plan, {}, firsts_of(items)))
        assert known.loglikelihoods(items) != plain.loglikelihoods(items)


@pytest.mark.parametrize("family", ["llama", "gpt-neox", "qwen3"])
def test_all_other_first_tokens_may_have_the_mean_of_those_that_are_known(family: str) -> None:
    model, items, plan = tiny_model(family), some_items()[2:4], MORE["K/V only behind an early drop"]
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    depths = depths_of(plan, BLOCKS)
    table = first_tokens_of(model, [3, items[0].prompts[0][0]], depths, others=True)
    assert table.tokens[0] == OTHERS
    assert torch.allclose(table.states[:, 0], table.states[:, 1:].mean(dim=1))
    staged = StagedModel(cache, plan, {FirstTokensOf(plan): table})
    found, reference = staged.loglikelihoods(items), two_phase_sums(staged, items)
    for sums, expected, item in zip(found, reference, items, strict=True):
        assert sums == pytest.approx(tuple(expected), abs=1e-4 * max(map(len, item.choices)))
    known = StagedModel(cache, plan, {FirstTokensOf(plan): first_tokens_of(model, table.tokens[1:].tolist(), depths)})
    assert known.loglikelihoods(items)[0] == found[0]
    assert known.loglikelihoods(items)[1] != found[1]


def test_a_prompt_of_one_token_that_decode_reads_is_not_prefill_s() -> None:
    model, item = tiny_llama(), Item(((9,),), ((3, 4),), 0, (1,))
    cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    staged = StagedModel(cache, EARLY, with_table(model, EARLY, {}, {9}))
    assert staged.loglikelihoods([item]) == StagedModel(cache, EARLY).loglikelihoods([item])
    assert staged.loglikelihoods([item])[0] == pytest.approx(two_phase_sums(staged, [item])[0], abs=1e-3)


@pytest.mark.parametrize(
    ("plan", "depths"),
    [
        (Plan(), ()),
        (Plan(decode=Removal([Drop(1)])), ()),
        (EARLY, (2, 3, 4, 5)),
        (KV_ONLY, (2, 3, 4, 5)),
        (Plan(Removal([KvOnly(2)]), Removal([MERGE])), (2, 4, 5)),
        (Plan(Removal([Drop(1)]), Removal([Drop(1), MERGE])), (2, 3, 4, 5)),
        (Plan.unified(Removal([Drop(5)])), ()),
        (Plan.unified(Removal([Merge(keep=4, drop=5)])), (4,)),
    ],
)
def test_a_table_reaches_from_prefill_s_first_loss_to_its_last_layer(plan: Plan, depths: tuple[int, ...]) -> None:
    assert depths_of(plan, BLOCKS) == depths


def test_a_table_has_what_the_dense_model_has_in_front_of_each_block() -> None:
    model, tokens = tiny_llama(), [60, 3, 17, 3]
    table = first_tokens_of(model, tokens, (0, 2, 5))
    assert table.tokens.tolist() == [3, 17, 60]
    with torch.inference_mode():
        hidden = model.model(torch.tensor([[17, 5, 6]]), output_hidden_states=True).hidden_states
    for number, block in enumerate((0, 2, 5)):
        assert torch.allclose(table.states[number, 1], hidden[block][0, 0], atol=1e-5)


def test_a_token_that_the_model_does_not_have_is_in_no_table() -> None:
    with pytest.raises(PdtrimError, match="a table of first tokens"):
        first_tokens_of(tiny_llama(), [5, 10_000], (2,))


def test_only_first_tokens_that_are_known_change() -> None:
    table = FirstTokens(torch.tensor([4, 9]), torch.tensor([3]), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]))
    hidden, firsts = torch.zeros(2, 3, 2), Firsts(torch.tensor([9, 5]), torch.tensor([1, 3]))
    assert table.put(hidden, 3, firsts).tolist() == [[[0, 0], [3, 4], [0, 0]], [[0, 0]] * 3]
    assert table.put(hidden, 2, firsts) is hidden
    assert table.known(firsts).tolist() == [1]
    assert float(hidden.abs().sum()) == 0


def test_states_of_other_depths_or_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="not those of 2 tokens at 1 depths"):
        FirstTokens(torch.tensor([4, 9]), torch.tensor([3]), torch.zeros(2, 1, 8))


def test_a_table_is_stored_with_prefill_s_weights_and_read_again(tmp_path: Path) -> None:
    model = tiny_llama()
    for modules in ({}, recovered(model, KV_ONLY, {}, kv=True)):
        saved = with_table(model, KV_ONLY, modules, {3, 17})
        save_recovered(KV_ONLY, model, saved, tmp_path)
        loaded = load_recovered(KV_ONLY, model, {}, tmp_path)
        assert loaded.keys() == saved.keys()
        before, after = (found[FirstTokensOf(KV_ONLY)].state_dict() for found in (saved, loaded))
        assert all(torch.equal(before[name], after[name]) for name in ("tokens", "depths", "states"))
    save_recovered(KV_ONLY, model, {}, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("other", [EARLY, Plan(prefill=Removal([KvOnly(1)]))])
def test_a_table_of_another_plan_is_refused(tmp_path: Path, other: Plan) -> None:
    model = tiny_llama()
    table = {FirstTokensOf(other): first_tokens_of(model, [3], depths_of(KV_ONLY, BLOCKS)[1:])}
    save_recovered(other, model, table, tmp_path)
    with pytest.raises(PdtrimError, match="its table of first tokens is of other layers"):
        load_recovered(other, model, {}, tmp_path)
