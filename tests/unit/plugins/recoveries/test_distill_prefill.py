"""Distill with prefill trained: towards the dense K/V where the cache must speak for all, towards answers where it need not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, KvOnly, Plan, Removal, Shrink, write_tensors
from pdtrim_core.execution.recovered_weights import recovered_weights
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_plugins.recoveries import Distill, ExactFirstToken, Fold, KvRefit
from tests.unit.execution.test_staged_model import MERGE, replacements
from tests.unit.plugins.recoveries.test_distill import QUICK, TAIL, UNIFIED, changed, in_one_pass, in_two_phases, trained
from tests.unit.plugins.recoveries.test_training import Interrupted, same
from tests.unit.recovery_pairs import DECODE_DROPS, recovery_context, some_texts

if TYPE_CHECKING:
    from pdtrim_core.api import RecoveryContext
    from pdtrim_core.plan.elements import Stage

GAP = Plan(Removal([Drop(2), KvOnly(4), KvOnly(5)]), Removal([Drop(2)]))
"""Prefill loses a block in front of those that it passes by."""
ONLY_TAIL = Plan(Removal([KvOnly(3), KvOnly(4), KvOnly(5)]))
FEWER_HEADS = Plan(Removal(), Removal([Shrink(3, "attention", (0,))]))
ALL = {"self_attn.k_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight"}


@pytest.fixture(params=["full", "lora"])
def train(request: pytest.FixtureRequest) -> str:
    if request.param == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    return str(request.param)


def off(context: RecoveryContext) -> float:
    """How far K and V of the blocks that prefill passes by are from the dense model's, as a share, on the texts to check with."""
    shares = []
    for layer in context.walk("prefill", texts=context.check):
        if layer.layer.state == "kv-only":
            for name in ("self_attn.k_proj", "self_attn.v_proj"):
                norms = [block.get_submodule("input_layernorm") for block in (layer.module, layer.left)]
                for tokens in layer.tokens():
                    found = layer.module.get_submodule(name)(norms[0](tokens.before_ND))
                    wanted = layer.left.get_submodule(name)(norms[1](tokens.dense_before_ND))
                    shares.append(float((found - wanted).square().mean() / wanted.square().mean()))
    return sum(shares) / len(shares)


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
@pytest.mark.parametrize("plan", [ONLY_TAIL, GAP])
def test_kv_that_prefill_alone_makes_come_nearer_to_the_dense_and_all_else_stays(
    plan: Plan, family: str, train: str, tmp_path: Path
) -> None:
    context = recovery_context(tiny_model(family), plan, folder=tmp_path, texts=some_texts(96, tokens=24))
    before = context.divergence()
    trained(context, stage="prefill", train=train, steps=24, lr=1e-2)
    assert context.divergence() < before
    assert not changed(context, "decode")
    names = changed(context, "prefill")
    # In front of block 3 of the tail prefill has the dense hidden states, and so the dense K/V.
    assert {name.partition(".")[0] for name in names} == {"4", "5"}
    assert all(name.partition(".")[2].startswith(context.model.layout.kv[:3]) for name in names)


def test_the_difference_itself_falls(train: str, tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), GAP, folder=tmp_path, texts=some_texts(96, tokens=24))
    before = off(context)
    trained(context, stage="prefill", train=train, steps=24, lr=1e-2)
    assert off(context) < 0.95 * before


def test_adapters_are_beside_the_projections_of_k_and_v_alone(tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    context = trained(recovery_context(tiny_llama(), TAIL, folder=tmp_path), stage="prefill", train="lora")
    assert {name.partition(".")[2] for name in changed(context, "prefill")} == ALL - {"input_layernorm.weight"}


def test_decode_does_not_decide_what_a_cache_for_all_becomes(tmp_path: Path) -> None:
    def kv(folder: str, decode: Removal, **options: Any) -> dict[str, torch.Tensor]:
        context = recovery_context(tiny_llama(), Plan(TAIL.prefill, decode), folder=tmp_path / folder)
        trained(context, train="full", check_every=12, **options)
        return recovered_weights(context.plan, context.model, context.pair.modules, "prefill")

    alone = kv("alone", Removal([Drop(1)]), stage="prefill")
    both, other = kv("both", Removal([Drop(1)]), stage="both"), kv("other", Removal([Drop(3)]), stage="prefill")
    assert all(torch.equal(alone[name], both[name]) and torch.equal(alone[name], other[name]) for name in alone)
    assert len(alone) == 3


def test_with_both_decode_learns_on_what_prefill_learned(train: str, tmp_path: Path) -> None:
    losses: list[float] = []
    context = recovery_context(tiny_llama(), TAIL, folder=tmp_path, texts=some_texts(48), lost=losses.append)
    before = context.divergence()
    trained(context, stage="both", train=train)
    assert context.divergence() < before
    assert changed(context, "prefill")
    assert not {name.partition(".")[2] for name in changed(context, "decode")} & ALL
    assert len(losses) == QUICK["steps"]  # those of answers, in nats
    assert sorted(file.name for file in tmp_path.iterdir()) == ["kv.safetensors", "training.safetensors"]


@pytest.mark.parametrize("plan", [DECODE_DROPS, TAIL, GAP, FEWER_HEADS, Plan(decode=Removal([MERGE]))])
@pytest.mark.parametrize("stage", ["prefill", "both"])
def test_with_the_contract_pair_answers_train_prefill(stage: Stage, plan: Plan, train: str, tmp_path: Path) -> None:
    model = tiny_llama()
    context = recovery_context(model, plan, folder=tmp_path, modules=replacements(model), texts=some_texts(48))
    dense = {name: weight.clone() for name, weight in model.model.named_parameters()}
    before = context.divergence()
    trained(context, stage=stage, contract="pair", train=train)
    assert context.divergence() < before
    assert changed(context, "prefill")
    assert bool(changed(context, "decode")) == (stage != "prefill")
    assert all(torch.equal(weight, dense[name]) for name, weight in model.model.named_parameters())


@pytest.mark.numeric
@pytest.mark.parametrize("contract", ["dense-cache", "pair"])
@pytest.mark.parametrize("plan", [DECODE_DROPS, TAIL, GAP, FEWER_HEADS])
def test_one_pass_agrees_with_two_phases_when_both_are_trained(plan: Plan, contract: str, train: str, tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), plan, folder=tmp_path, texts=some_texts(48))
    trained(context, stage="both", contract=contract, train=train)
    one = in_one_pass(context)
    for text, expected in zip(context.check, in_two_phases(context), strict=True):
        assert one[text.name].log_softmax(-1) == pytest.approx(expected.log_softmax(-1), abs=1e-4)


@pytest.mark.parametrize("options", [{"recompute": True}, {"autocast": True}, {"stream_weight": 1.0}])
def test_each_way_to_compute_a_step_trains_prefill(options: dict[str, Any], tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), folder=tmp_path, texts=some_texts(48))
    before = context.divergence()
    trained(context, stage="both", contract="pair", **options)
    assert context.divergence() < before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_trains_kv_and_keeps_its_format(dtype: torch.dtype, train: str, tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(dtype=dtype), GAP, folder=tmp_path, texts=some_texts(96, tokens=24))
    before = context.divergence()
    trained(context, stage="prefill", train=train, steps=24, lr=1e-2)
    assert context.divergence() < before
    weights = recovered_weights(context.plan, context.model, context.pair.modules, "prefill")
    assert {weight.dtype for weight in weights.values()} == {dtype}


def test_behind_the_last_kv_that_decode_reads_nothing_of_prefill_is_trained() -> None:
    model = tiny_llama()
    plan = Plan(decode=Removal([Drop(2), Drop(5)]))

    def blocks(first_token: str) -> set[int]:
        context = recovery_context(model, plan, first_token=first_token)
        return {layer.block for (_, layer), _ in Distill(contract="pair")._trained(context, "prefill")}

    assert blocks("decode") == {2, 3, 4}
    assert blocks("prefill") == {2, 3, 4, 5}


def test_it_goes_on_from_what_closed_forms_and_a_table_made(tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), GAP, folder=tmp_path, texts=some_texts(200, tokens=24))
    for recovery in (ExactFirstToken(), Fold(stage="prefill"), KvRefit()):
        recovery.recover(context)
    before, table = context.divergence(), len(context.pair.modules)
    trained(context, stage="both", contract="pair", lr=1e-3)
    assert context.divergence() < before
    assert len(context.pair.modules) > table


@pytest.mark.numeric
@pytest.mark.parametrize("behind", [2, 5, 9])
@pytest.mark.parametrize("contract", ["dense-cache", "pair"])
def test_an_interrupted_training_of_both_ends_with_the_same_weights(
    contract: str, behind: int, train: str, tmp_path: Path
) -> None:
    def run(folder: str, **given: Any) -> dict[str, torch.Tensor]:
        context = recovery_context(tiny_llama(), TAIL, folder=tmp_path / folder, **given)
        Distill(**QUICK, save_every=3, stage="both", contract=contract, train=train).recover(context)
        stages: tuple[Stage, ...] = ("prefill", "decode")
        found = [recovered_weights(context.plan, context.model, context.pair.modules, stage) for stage in stages]
        return {f"{number} {name}": weight for number, own in enumerate(found) for name, weight in own.items()}

    expected = run("whole")
    with pytest.raises(KeyboardInterrupt):
        run("work", lost=Interrupted(behind))
    assert same(run("work"), expected)


@pytest.mark.numeric
@pytest.mark.parametrize("write", [2, 4])
def test_a_training_of_kv_that_is_stopped_while_it_writes_goes_on(write: int, tmp_path: Path) -> None:
    def run(folder: str, notes: list[str]) -> dict[str, torch.Tensor]:
        context = recovery_context(tiny_llama(), TAIL, folder=tmp_path / folder, note=notes.append)
        Distill(**QUICK, save_every=3, stage="prefill").recover(context)
        return recovered_weights(context.plan, context.model, context.pair.modules, "prefill")

    expected, written = run("whole", []), 0

    def stopped(*given: Any) -> None:
        nonlocal written
        written += 1
        if written == write:
            raise KeyboardInterrupt
        write_tensors(*given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pdtrim_plugins.recoveries.training.write_tensors", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("work", [])
    notes: list[str] = []
    assert same(run("work", notes), expected)
    assert notes == [f"distill: goes on behind step {3 * (write - 1)} of 12"]


def test_prompts_of_which_only_the_first_token_is_read_teach_no_kv(tmp_path: Path) -> None:
    short = [text for text in some_texts(200) if len(text.prompt_of(0)) == 2][:8]
    context = recovery_context(tiny_llama(), TAIL, folder=tmp_path, texts=short)
    trained(context, stage="prefill")
    assert not changed(context, "prefill")


@pytest.mark.parametrize("stage", ["prefill", "both"])
def test_a_prefill_that_passes_by_nothing_says_so(stage: str, tmp_path: Path) -> None:
    notes: list[str] = []
    context = recovery_context(tiny_llama(), folder=tmp_path, note=notes.append, texts=some_texts(48))
    trained(context, stage=stage)
    assert notes == ["distill: prefill skips no block whose K/V could be trained, so nothing of it is trained"]
    assert bool(changed(context, "decode")) == (stage == "both")


@pytest.mark.parametrize("stage", ["decode", "prefill", "both"])
def test_where_both_stages_are_one_model_each_stage_is_that_model(stage: str, tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), UNIFIED, folder=tmp_path, texts=some_texts(48))
    before = context.divergence()
    trained(context, stage=stage)
    assert context.divergence() < before
    assert changed(context, "prefill") == changed(context, "decode") != set()
