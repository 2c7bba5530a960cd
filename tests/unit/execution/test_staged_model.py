"""Scoring in one pass agrees with what an engine does in two phases, for every family and every sort of plan."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from pdtrim_core.api import Drop, Item, KvOnly, Merge, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.passes import result_of
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_core.testing.rounding import ROUNDING, units_apart

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Element
    from pdtrim_core.plan.plan import FirstToken

pytestmark = pytest.mark.numeric

BLOCKS = 6
MERGE = Merge(keep=3, drop=2)
FROZEN = Merge(keep=2, drop=3, kv="frozen")
THREE = Merge(keep=1, drop=3)
PLANS = {
    "dense": Plan(),
    "decode-only drop": Plan(decode=Removal([Drop(2)])),
    "decode-only drop of block 0": Plan(decode=Removal([Drop(0)])),
    "unified drops at both ends": Plan.unified(Removal([Drop(0), Drop(5)])),
    "part of the drops in prefill": Plan(Removal([Drop(4)]), Removal([Drop(1), Drop(3), Drop(4)])),
    "K/V only": Plan(prefill=Removal([KvOnly(4)])),
    "K/V only in the first block": Plan(prefill=Removal([KvOnly(0)]), decode=Removal([Drop(3)])),
    "decode-only merge": Plan(Removal([Drop(1)]), Removal([Drop(1), MERGE])),
    "unified merge": Plan.unified(Removal([MERGE])),
    "K/V only of a merge": Plan(Removal([KvOnly(2)]), Removal([MERGE, Drop(5)])),
    "frozen merge": Plan(decode=Removal([FROZEN])),
    "decode-only merge of three": Plan(Removal([Drop(0)]), Removal([Drop(0), THREE])),
    "unified merge of three": Plan.unified(Removal([THREE])),
    "K/V only of a merge of three": Plan(Removal([KvOnly(1)]), Removal([THREE])),
    "K/V only of a frozen merge": Plan(Removal([KvOnly(2)]), Removal([FROZEN])),
}
TAILS = {f"{name}, truncated prefill": plan.truncated_prefill(BLOCKS) for name, plan in PLANS.items()}
FUSED = ("gpt-neox", "phi3")
"""Families in which Q, K and V are one projection."""
FAMILIES_AND_KV = [(family, kv) for family in FAMILIES for kv in (False, True) if not kv or family not in FUSED]
"""Each family, and whether the weights that make K and V are changed as well, where it has some."""


def some_items(*, vocabulary: int = 256) -> list[Item]:
    """Items of one token and of many, with long and short prompts, and one with a prompt a choice."""
    rng = random.Random(1)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(count))

    shapes = [(5, (3, 2)), (9, (1, 1, 1)), (3, (6, 1)), (12, (4, 4, 5)), (30, (3,)), (2, (2, 2))]
    items = [
        Item((tokens(prompt),), tuple(tokens(c) for c in choices), 0, (1,) * len(choices), f"item {number}")
        for number, (prompt, choices) in enumerate(shapes)
    ]
    return [*items, Item((tokens(4), tokens(7)), (tokens(2),) * 2, 1, (1, 1), "two prompts")]


def replacements(model: BlockModel) -> dict[Merge | Shrink, nn.Module]:
    """Merged blocks whose weights are off, so that wrong K/V show; the frozen one keeps its norm, K and V."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        merged, frozen, three = (copy.deepcopy(model.blocks[merge.keep]) for merge in (MERGE, FROZEN, THREE))
        with torch.no_grad():
            for parameter in (*merged.parameters(), *three.parameters()):
                parameter.add_(0.05 * torch.randn_like(parameter))
            for name, parameter in frozen.named_parameters():
                if any(part in name for part in ("down_proj", "o_proj", "fc2", "out_proj", "dense_4h_to_h")):
                    parameter.mul_(1.3)
    return {MERGE: merged, FROZEN: frozen, THREE: three}


def two_phases_of(staged: StagedModel) -> TwoPhaseModel:
    """The same plan on the same model, run as a serving engine runs it."""
    return TwoPhaseModel(staged._model, staged.plan, staged._modules, first_token=staged._prefix_cache.first_token)


def two_phase_sums(staged: StagedModel, items: Sequence[Item]) -> list[list[float]]:
    """What each choice scores when a cache is handed over and decode runs token by token."""
    found, two_phase = [], two_phases_of(staged)
    for item in items:
        sums = []
        for number, choice in enumerate(item.choices):
            logits = two_phase.continuation_logits(item.prompt_of(number), choice).double().log_softmax(-1)
            sums.append(sum(float(logits[place, token]) for place, token in enumerate(choice)))
        found.append(sums)
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_is_fused_where_k_and_v_have_no_weights_of_their_own(family: str) -> None:
    assert (family in FUSED) == (not tiny_model(family).layout.kv)


def two_phase_gaps(
    model: BlockModel,
    plans: Mapping[str, Plan],
    modules_of: Callable[[Plan], Mapping[Any, nn.Module]],
    items: Sequence[Item],
    first_token: FirstToken,
) -> dict[str, float]:
    """How far a choice is from two phases at most, in nats a token, for each plan: in rows of its own and in shared ones."""
    caches = [
        PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64, packed=packed)) for packed in (False, True)
    ]
    worst = {}
    for name, plan in plans.items():
        modules = modules_of(plan)
        reference = two_phase_sums(StagedModel(caches[0], plan, modules), items)
        worst[name] = max(
            abs(a - b) / len(choice)
            for cache in caches
            for item, sums, expected in zip(
                items, StagedModel(cache, plan, modules).loglikelihoods(items), reference, strict=True
            )
            for a, b, choice in zip(sums, expected, item.choices, strict=True)
        )
    return worst


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_pass_agrees_with_two_phases(family: str, first_token: FirstToken) -> None:
    model = tiny_model(family)
    modules = replacements(model)
    items = [*some_items()[2:4], *some_items()[-1:]]
    plans = {**PLANS, **(TAILS if first_token == "decode" else {})}
    gaps = two_phase_gaps(model, plans, lambda plan: modules, items, first_token)
    # Rounding of float32 over six blocks; a wrong K/V or mask gives tenths of a nat.
    assert {name: gap for name, gap in gaps.items() if gap > 1e-4} == {}


@pytest.mark.parametrize("first_token", ["decode", "prefill"])
def test_in_float64_one_pass_and_two_phases_are_the_same_but_for_rounding(first_token: FirstToken) -> None:
    model = tiny_llama(dtype=torch.float64)
    prefix_cache = PrefixCache(model, ExecutionOptions(first_token=first_token, batch_tokens=64))
    modules = replacements(model)
    items = [item for item in some_items() if len(item.choices[0]) > 1]
    for plan in PLANS.values():
        staged = StagedModel(prefix_cache, plan, modules)
        with torch.inference_mode():
            # The public numbers are float32, so the streams themselves are compared.
            streams = [stream_of_two_phases(model, staged, item) for item in items]
        assert max(streams) < 1e-12


def stream_of_two_phases(model: BlockModel, staged: StagedModel, item: Item) -> float:
    """How far the last stream of one pass is from that of the cached run, on the decode tokens, in float64."""
    seen: list[torch.Tensor] = []
    norm = model.model.model.norm
    hook = norm.register_forward_pre_hook(lambda module, args: seen.append(args[0][0, -1:].clone()))
    try:
        two_phases_of(staged).continuation_logits(item.prompts[0], item.choices[0])
    finally:
        hook.remove()
    ((_, prepared),) = staged._prefix_cache.batches([Item(item.prompts[:1], item.choices[:1], 0, (1,))])
    stream = result_of(staged._pass(prepared))[0, len(item.prompts[0]) - 1 :]
    cached = torch.cat(seen)[-len(item.choices[0]) :]
    return float((stream[-len(cached) :] - cached).abs().max())


@pytest.mark.parametrize("name", PLANS)
def test_the_free_tail_changes_no_logit(name: str) -> None:
    model = tiny_llama()
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    plan, modules = PLANS[name], replacements(model)
    whole, free = (StagedModel(prefix_cache, p, modules) for p in (plan, plan.truncated_prefill(BLOCKS)))
    assert whole.loglikelihoods(some_items()) == free.loglikelihoods(some_items())
    item = some_items()[3]
    whole_logits, free_logits = (two_phases_of(s).continuation_logits(item.prompts[0], item.choices[2]) for s in (whole, free))
    assert torch.equal(whole_logits, free_logits)


def test_dense_scores_are_those_of_the_model_itself() -> None:
    model = tiny_llama()
    items = some_items()
    sums = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), Plan()).loglikelihoods(items)
    for item, of_choices in zip(items, sums, strict=True):
        for number, (choice, total) in enumerate(zip(item.choices, of_choices, strict=True)):
            prompt = item.prompt_of(number)
            with torch.inference_mode():
                logits = model.model(torch.tensor([[*prompt, *choice]])).logits[0].double().log_softmax(-1)
            expected = sum(float(logits[len(prompt) - 1 + i, token]) for i, token in enumerate(choice))
            assert total == pytest.approx(expected, abs=1e-4)


def test_a_unified_plan_scores_as_the_model_without_those_blocks() -> None:
    model, pruned = tiny_llama(), tiny_llama()
    plan = Plan.unified(Removal([Drop(1), Drop(4)]))
    kept = [block for index, block in enumerate(pruned.blocks) if index not in (1, 4)]
    pruned.model.model.layers = nn.ModuleList(kept)
    pruned.config.num_hidden_layers = len(kept)
    item = some_items()[0]
    (sums,) = StagedModel(PrefixCache(model), plan).loglikelihoods([item])
    for choice, total in zip(item.choices, sums, strict=True):
        with torch.inference_mode():
            ids = torch.tensor([[*item.prompts[0], *choice]])
            logits = pruned.model(ids, use_cache=False).logits[0].double().log_softmax(-1)
        expected = sum(float(logits[len(item.prompts[0]) - 1 + i, token]) for i, token in enumerate(choice))
        assert total == pytest.approx(expected, abs=1e-4)


def test_with_the_first_token_by_prefill_one_token_choices_do_not_see_decode() -> None:
    model = tiny_llama()
    item = some_items()[1]
    plan = Plan(decode=Removal([Drop(1), Drop(2), Drop(3)]))
    by_prefill, by_decode = (PrefixCache(model, ExecutionOptions(first_token=stage)) for stage in ("prefill", "decode"))
    dense, pruned, seen = (
        torch.tensor(StagedModel(prefix_cache, p).loglikelihoods([item]))
        for prefix_cache, p in ((by_prefill, Plan()), (by_prefill, plan), (by_decode, plan))
    )
    # Prompts that only prefill runs are gathered into rows of their own.
    assert units_apart(pruned, dense) <= ROUNDING < 100 * ROUNDING < units_apart(seen, dense)


@pytest.mark.parametrize("batch_tokens", [1, 40, 10_000])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed"])
def test_values_do_not_depend_on_the_batch(batch_tokens: int, packed: bool) -> None:
    model, items = tiny_llama(), some_items()
    plan = PLANS["part of the drops in prefill"]
    usual = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan).loglikelihoods(items)
    other = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=batch_tokens, packed=packed)), plan).loglikelihoods(
        items
    )
    for one, two in zip(usual, other, strict=True):
        assert one == pytest.approx(two, abs=1e-4)


@pytest.mark.parametrize("budget", [0, 10_000, None], ids=["nothing kept", "some depths", "all depths"])
def test_keeping_streams_changes_no_bit(budget: int | None) -> None:
    model, items = tiny_llama(), some_items()
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64, budget=budget))
    fresh = {
        name: StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64, budget=0)), plan, replacements(model))
        for name, plan in PLANS.items()
    }
    for name, plan in PLANS.items():
        kept = StagedModel(prefix_cache, plan, replacements(model))
        assert kept.loglikelihoods(items) == fresh[name].loglikelihoods(items)
        assert kept.loglikelihoods(items) == fresh[name].loglikelihoods(items)


def test_the_model_is_as_before_after_scoring_and_generating() -> None:
    model = tiny_llama()
    before, config = model.fingerprint, model.config.to_dict()
    ids = torch.arange(20)[None]
    with torch.inference_mode():
        logits = model.model(ids).logits
    staged = StagedModel(PrefixCache(model), PLANS["K/V only of a merge"], replacements(model))
    staged.loglikelihoods(some_items())
    two_phases_of(staged).generate([1, 2, 3, 4], 5)
    model.__dict__.pop("fingerprint")
    assert model.fingerprint == before
    assert model.config.to_dict() == config
    assert [block.get_submodule("self_attn").layer_idx for block in model.blocks] == list(range(BLOCKS))
    with torch.inference_mode():
        assert torch.equal(model.model(ids).logits, logits)


def test_the_model_is_as_before_after_an_exception() -> None:
    model = tiny_llama()

    class Broken(nn.Module):
        def forward(self, *args: object, **kwargs: object) -> torch.Tensor:
            raise RuntimeError("boom")

    with torch.inference_mode():
        logits = model.model(torch.arange(9)[None]).logits
    staged = StagedModel(PrefixCache(model), Plan.unified(Removal([MERGE])), {MERGE: Broken()})
    with pytest.raises(RuntimeError, match="boom"):
        staged.loglikelihoods(some_items())
    with pytest.raises(RuntimeError, match="boom"):
        two_phases_of(staged).generate([1, 2, 3], 2)
    assert len(model.model.model.layers) == model.config.num_hidden_layers == BLOCKS
    with torch.inference_mode():
        assert torch.equal(model.model(torch.arange(9)[None]).logits, logits)


def test_greedy_tokens_are_those_that_scoring_in_one_pass_prefers() -> None:
    model = tiny_llama()
    prefix_cache = PrefixCache(model)
    staged = StagedModel(prefix_cache, PLANS["part of the drops in prefill"])
    prompt = (5, 6, 7, 8)
    made = two_phases_of(staged).generate(prompt, 4)
    for place in range(4):
        choices = tuple((*made[:place], token) for token in range(256))
        item = Item((prompt,), choices, 0, (1,) * 256, f"place {place}")
        (sums,) = staged.loglikelihoods([item])
        assert max(range(256), key=sums.__getitem__) == made[place]


@pytest.mark.parametrize("packed", [True, False])
def test_a_choice_is_greedy_when_each_of_its_tokens_is_the_likeliest(packed: bool) -> None:
    model, plan = tiny_llama(), PLANS["part of the drops in prefill"]
    staged = StagedModel(PrefixCache(model, ExecutionOptions(packed=packed, budget=0)), plan)
    items = []
    for number, prompt in enumerate((range(5, 16), (11, 12, 13), (99,))):
        made = tuple(two_phases_of(staged).generate(tuple(prompt), 4))
        choices = (made, (*made[:3], (made[3] + 1) % 256), ((made[0] + 1) % 256, *made[1:]), made[:1])
        items.append(Item((tuple(prompt),), choices, 0, (1,) * 4, str(number)))
    scores = staged.scores(items)
    assert [[scored.greedy for scored in of_item] for of_item in scores] == [[True, False, False, True]] * 3
    sums = staged.loglikelihoods(items)
    assert [tuple(scored.logprob for scored in of_item) for of_item in scores] == sums


def test_a_merge_without_a_trained_block_is_refused() -> None:
    with pytest.raises(PdtrimError, match=r"^the plan has 2\+3, but no merged block was given for it$"):
        StagedModel(PrefixCache(tiny_llama()), Plan.unified(Removal([MERGE])))


@pytest.mark.parametrize("silent", range(BLOCKS))
def test_dropping_a_block_that_is_the_identity_changes_no_logit(silent: int) -> None:
    prefix_cache = PrefixCache(tiny_llama(silent={silent}))
    elements: list[Element] = [Drop(silent)]
    dense, dropped = (StagedModel(prefix_cache, plan) for plan in (Plan(), Plan.unified(Removal(elements))))
    assert dense.loglikelihoods(some_items()) == dropped.loglikelihoods(some_items())


def test_the_model_may_be_used_while_its_logits_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.model.block_model.HEAD_NUMBERS", 260 * 4)
    model = tiny_llama()
    streams = [torch.randn(10, 32) for _ in range(2)]
    with torch.inference_mode():
        alone = [torch.cat(list(model.logits(stream))) for stream in streams]
        pairs = list(zip(*(model.logits(stream) for stream in streams), strict=True))
    together = [torch.cat([pair[number] for pair in pairs]) for number in range(2)]
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))
    assert not any("forward" in vars(block) for block in model.blocks)
