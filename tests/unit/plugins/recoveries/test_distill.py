"""Distill: a pair that is trained comes nearer to the dense model, and what must stay stays."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Drop, KvOnly, PdtrimError, Plan, RecoveryFacts, Removal, Shrink
from pdtrim_core.execution.recovered_weights import recovered_weights
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.pipeline.recovery_contract import check_change
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_plugins.recoveries import Distill, Fold
from tests.unit.execution.test_staged_model import MERGE, replacements
from tests.unit.recovery_pairs import DECODE_DROPS, recovery_context, some_texts

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, RecoveryContext

QUICK: dict[str, Any] = {"steps": 12, "batch": 4, "lr": 5e-3, "check_every": 4}
UNIFIED = Plan.unified(Removal([Drop(2)]))
TAIL = Plan(Removal([KvOnly(4), KvOnly(5)]), Removal([Drop(1)]))


def trained(context: RecoveryContext, **options: Any) -> RecoveryContext:
    """The context, after a training that the run would accept."""
    start = dict(context.pair.modules)
    distill = Distill(**{**QUICK, **options})
    distill.recover(context)
    check_change(context.pair, start, distill.contract, "distill")
    return context


def changed(context: RecoveryContext, stage: Any = "decode") -> set[str]:
    """The names of the weights of a stage that are not those of the plan."""
    return set(recovered_weights(context.plan, context.model, context.pair.modules, stage))


def in_two_phases(context: RecoveryContext) -> list[torch.Tensor]:
    """The logits of the pair behind each token of the texts to check with, from a cache that is handed over."""
    pair = TwoPhaseModel(context.model, context.plan, context.pair.modules)
    return [pair.continuation_logits(text.prompt_of(0), text.choices[0]) for text in context.check]


def in_one_pass(context: RecoveryContext) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        for batch in context.batches(context.check):
            logits = torch.cat(list(context.model.logits(batch.pair())))
            parts = torch.split(logits, [len(text.choices[0]) for text in batch.texts])
            found.update(zip((text.name for text in batch.texts), parts, strict=True))
    return found


@pytest.mark.parametrize("train", ["full", "lora"])
def test_the_loss_falls_and_so_does_the_divergence_on_other_texts(train: str, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    losses: list[float] = []
    context = recovery_context(tiny_llama(), folder=tmp_path, texts=some_texts(64), lost=losses.append)
    before = context.divergence()
    trained(context, train=train, steps=24)
    assert len(losses) == 24
    assert sum(losses[-4:]) < 0.8 * sum(losses[:4])
    assert context.divergence() < 0.95 * before


@pytest.mark.parametrize("plan", [DECODE_DROPS, TAIL, UNIFIED, Plan(decode=Removal([MERGE])), Plan(decode=Removal([Drop(0)]))])
def test_every_sort_of_plan_can_be_trained(plan: Plan, tmp_path: Path) -> None:
    model = tiny_llama()
    context = recovery_context(model, plan, folder=tmp_path, modules=replacements(model), texts=some_texts(48))
    before = context.divergence()
    trained(context)
    assert context.divergence() < before


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3"])
def test_every_family_whose_weights_are_apart_can_be_trained(family: str, tmp_path: Path) -> None:
    context = recovery_context(tiny_model(family), folder=tmp_path, texts=some_texts(48))
    before = context.divergence()
    trained(context, steps=16, lr=2e-3)
    assert context.divergence() < before
    layout = context.model.layout
    if not layout.kv:
        assert all(name.partition(".")[2].startswith(layout.mlp) for name in changed(context))


@pytest.mark.parametrize("family", ["gemma3", "gpt-neox", "mixtral", "opt"])
def test_adapters_go_beside_the_projections_of_every_sort_of_family(family: str, tmp_path: Path) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    context = recovery_context(tiny_model(family), folder=tmp_path, texts=some_texts(48))
    before = context.divergence()
    trained(context, train="lora", steps=16)
    assert context.divergence() < before
    # Experts are no linear projections of their own.
    layout = context.model.layout
    wanted = [*layout.mlp, *(part for part in layout.attention if layout.kv and part not in layout.kv)]
    assert {name.partition(".")[2] for name in changed(context)} == {f"{part}.weight" for part in wanted}


@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("family", ["llama", "opt", "qwen3"])
def test_with_the_contract_dense_cache_what_makes_kv_stays_bit_for_bit(family: str, train: str, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    context = recovery_context(tiny_model(family), folder=tmp_path)
    trained(context, train=train)
    kv = context.model.layout.kv
    for layer in context.layers("decode"):
        now, before = context.module("decode", layer), context.model.blocks[layer.block]
        for part in kv:
            pairs = zip(now.get_submodule(part).parameters(), before.get_submodule(part).parameters(), strict=True)
            assert all(torch.equal(a, b) for a, b in pairs)
    assert changed(context)
    assert not changed(context, "prefill")


def test_with_the_contract_pair_what_makes_kv_is_trained_but_for_norms_of_k(tmp_path: Path) -> None:
    context = trained(recovery_context(tiny_model("qwen3"), folder=tmp_path), contract="pair")
    names = {name.partition(".")[2] for name in changed(context)}
    assert {"self_attn.k_proj.weight", "self_attn.v_proj.weight", "input_layernorm.weight"} <= names
    assert "self_attn.k_norm.weight" not in names
    assert "self_attn.q_norm.weight" in names
    assert not changed(context, "prefill")


@pytest.mark.numeric
@pytest.mark.parametrize("contract", ["dense-cache", "pair"])
@pytest.mark.parametrize("train", ["full", "lora"])
@pytest.mark.parametrize("plan", [DECODE_DROPS, TAIL, UNIFIED])
def test_one_pass_agrees_with_two_phases_after_training(plan: Plan, train: str, contract: str, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    context = trained(recovery_context(tiny_llama(), plan, folder=tmp_path, texts=some_texts(48)), train=train, contract=contract)
    assert changed(context)
    one = in_one_pass(context)
    for text, expected in zip(context.check, in_two_phases(context), strict=True):
        assert one[text.name].log_softmax(-1) == pytest.approx(expected.log_softmax(-1), abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", ["full", "lora"])
def test_a_model_in_half_precision_learns_and_keeps_its_format(train: str, dtype: torch.dtype, tmp_path: Path) -> None:
    if train == "lora":
        pytest.importorskip("peft", reason="peft is not installed")
    context = recovery_context(tiny_llama(dtype=dtype), folder=tmp_path, texts=some_texts(64))
    before = context.divergence()
    trained(context, train=train, steps=24)
    assert context.divergence() < 0.95 * before
    weights = recovered_weights(context.plan, context.model, context.pair.modules, "decode")
    assert {weight.dtype for weight in weights.values()} == {dtype}


def test_steps_too_small_for_bfloat16_add_up_in_the_masters(tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(dtype=torch.bfloat16), folder=tmp_path, texts=some_texts(96))
    before = context.divergence()
    # A weight of 0.2 has a neighbour 1e-3 away in bfloat16: none of these steps reaches half of that.
    trained(context, train="full", lr=2e-4, steps=24, warm_up=0.0)
    assert context.divergence() < before


@pytest.mark.parametrize("options", [{"autocast": True}, {"recompute": True}, {"temperature": 2.0}, {"stream_weight": 1.0}])
def test_each_way_to_compute_a_step_learns(options: dict[str, Any], tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), folder=tmp_path, texts=some_texts(48))
    before = context.divergence()
    trained(context, steps=16, **options)
    assert context.divergence() < 0.97 * before


def losses_of(folder: Path, model: BlockModel | None = None, **options: Any) -> list[float]:
    losses: list[float] = []
    trained(recovery_context(model or tiny_llama(), folder=folder, lost=losses.append), **options)
    return losses


@pytest.mark.numeric
def test_recomputation_and_small_batches_change_no_loss(tmp_path: Path) -> None:
    plain = losses_of(tmp_path / "plain")
    assert losses_of(tmp_path / "again", recompute=True) == pytest.approx(plain, rel=1e-4)
    losses: list[float] = []
    trained(recovery_context(tiny_llama(), folder=tmp_path / "parts", lost=losses.append, batch_tokens=16))
    assert losses == pytest.approx(plain, rel=1e-4)


@pytest.mark.numeric
def test_the_weight_of_the_hidden_states_counts_their_relative_difference(tmp_path: Path) -> None:
    model = tiny_llama()
    plain, more = (losses_of(tmp_path / str(weight), model, steps=1, batch=24, stream_weight=weight)[0] for weight in (0.0, 0.5))
    shares, tokens = [], 0
    for batch in recovery_context(model).batches():
        dense_ND, pair_ND = batch.dense(), batch.pair()
        shares.append(batch.tokens * float((pair_ND - dense_ND).square().mean() / dense_ND.square().mean()))
        tokens += batch.tokens
    assert more - plain == pytest.approx(0.5 * sum(shares) / tokens, rel=0.01)


def test_only_layers_from_the_first_changed_one_up_are_trained(tmp_path: Path) -> None:
    model = tiny_llama()

    def blocks(plan: Plan) -> set[int]:
        context = recovery_context(model, plan, modules=replacements(model))
        return {layer.block for (_, layer), _ in Distill()._trained(context, "decode")}

    assert blocks(Plan(decode=Removal([Drop(3)]))) == {2, 4, 5}  # block 2 makes up for the one behind it
    assert blocks(Plan(decode=Removal([Shrink(3, "mlp", (0, 1))]))) == {3, 4, 5}
    assert blocks(Plan(decode=Removal([MERGE]))) == {2, 4, 5}
    assert blocks(Plan(decode=Removal([Drop(4), Drop(5)]))) == {3}
    assert blocks(Plan(decode=Removal([Drop(0), Drop(4)]))) == {1, 2, 3, 5}
    assert blocks(Plan(Removal([KvOnly(4)]), Removal())) == {4, 5}
    context = trained(recovery_context(model, folder=tmp_path))
    assert {int(name.partition(".")[0]) for name in changed(context)} == {1, 3, 4, 5}


def test_tied_embeddings_and_the_dense_model_stay(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=True)
    before = {name: weight.clone() for name, weight in model.model.named_parameters()}
    trained(recovery_context(model, folder=tmp_path))
    assert all(torch.equal(weight, before[name]) for name, weight in model.model.named_parameters())
    assert not any(weight.requires_grad or weight.grad is not None for weight in model.model.parameters())


def test_training_starts_from_what_earlier_recoveries_made(tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), folder=tmp_path, texts=some_texts(200))
    Fold().recover(context)
    folded = context.divergence()
    losses: list[float] = []
    after = recovery_context(
        context.model, folder=tmp_path, modules=context.pair.modules, texts=context.texts, lost=losses.append
    )
    trained(after, lr=1e-3)
    assert after.divergence() < folded


def test_where_no_check_is_better_all_stays_as_it_was(tmp_path: Path) -> None:
    notes: list[str] = []
    context = recovery_context(tiny_llama(), folder=tmp_path, note=notes.append)
    trained(context, lr=3.0, clip=1e9, warm_up=0.0, steps=4, check_every=1)
    assert not context.pair.modules
    assert notes == ["distill: at no check was the pair nearer to the dense model than before, so its weights stay as they were"]


def test_the_best_check_wins_and_not_the_last(tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), folder=tmp_path, texts=some_texts(4))
    before = context.divergence()
    seen: list[float] = []
    divergence = type(context).divergence

    def noted(self: RecoveryContext) -> float:
        seen.append(divergence(self))
        return seen[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(context), "divergence", noted)
        # Four texts are soon learned by heart.
        trained(context, lr=2e-2, steps=30, check_every=1)
    assert min(seen) < seen[-1]
    assert context.divergence() == pytest.approx(min(seen), rel=1e-6)
    assert seen[0] == before


def test_a_plan_that_loses_nothing_is_left_alone(tmp_path: Path) -> None:
    notes: list[str] = []
    context = recovery_context(tiny_llama(), Plan(), folder=tmp_path, note=notes.append)
    trained(context)
    assert not context.pair.modules
    assert notes == ["distill: the plan takes nothing away that training could make up for"]


def test_a_loss_that_is_not_finite_says_what_to_change_and_leaves_all(tmp_path: Path) -> None:
    context = recovery_context(tiny_llama(), folder=tmp_path)
    with pytest.raises(PdtrimError, match=r"not finite at step \d+ of 12, with a learning rate of .*: say a lower lr"):
        # Logits divided by it are no numbers any more. Weights that grow without bounds are, on some processors.
        trained(context, temperature=1e-40)
    assert not context.pair.modules


def test_texts_follow_from_tokens_or_from_steps_where_those_need_fewer() -> None:
    assert Distill(tokens=1000).texts(100) == 10
    assert Distill(tokens=1001).texts(100) == 11
    assert Distill(steps=3, batch=2).texts(100) == 6
    assert Distill(tokens=100, steps=3, batch=2).texts(100) == 1
    assert Distill().tokens == 500_000


def test_without_steps_each_text_is_used_once(tmp_path: Path) -> None:
    assert len(losses_of(tmp_path / "all", steps=None, batch=4)) == 6  # of 24 texts
    assert len(losses_of(tmp_path / "few", steps=None, batch=100)) == 1


def test_the_learning_rate_rises_and_falls() -> None:
    shares = [Distill(warm_up=0.25)._share(step, 16) for step in range(16)]
    assert shares[:4] == [0.25, 0.5, 0.75, 1.0]
    assert shares[4] == 1.0
    assert shares[4:] == sorted(shares[4:], reverse=True)
    assert 0 < shares[-1] < 0.05
    assert Distill(warm_up=0.0)._share(0, 1) == 1.0


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "qlora"}, "train"),
        ({"contract": "none"}, "contract"),
        ({"stage": "dense"}, "stage"),
        ({"rank": 0}, "rank"),
        ({"lr": 0}, "lr"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"warm_up": 1}, "warm_up"),
        ({"temperature": 0}, "temperature"),
        ({"stream_weight": -1}, "stream_weight"),
        ({"save_every": 0}, "save_every"),
        ({"check_every": 0}, "check_every"),
        ({"tied": True}, "tied"),
    ],
)
def test_bad_options_are_named(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Distill(**options)


def test_the_option_contract_is_the_contract() -> None:
    assert Distill().contract == Fold().contract == "dense-cache"
    assert Distill(contract="pair").contract == "pair"


def test_families_with_fused_projections_are_refused_by_name() -> None:
    facts = RecoveryFacts("tiny", "phi3", tiny_model("phi3").layout)
    (problem,) = Distill().problems(facts)
    assert problem.startswith("tiny (phi3): its projections are fused")
    for family in FAMILIES:
        if family != "phi3":
            assert Distill(train="full").problems(RecoveryFacts("tiny", family, tiny_model(family).layout)) == []


def test_lora_without_peft_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_plugins.recoveries.distill.find_spec", lambda name: None)
    facts = RecoveryFacts("tiny", "llama", tiny_llama().layout)
    assert [problem[:32] for problem in Distill(train="lora").problems(facts)] == ["train = 'lora' needs peft, which"]
    assert Distill().problems(facts) == []
    context = recovery_context(tiny_llama(), folder=tmp_path)
    with pytest.raises(PdtrimError, match=r"pip install 'pdtrim-core\[distill\]', or say train = 'full'"):
        trained(context, train="lora")
    monkeypatch.setattr("pdtrim_plugins.recoveries.distill.LARGE", 0)
    with pytest.raises(PdtrimError, match=r"needs peft"):
        trained(context)


def test_large_models_are_trained_by_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("peft", reason="peft is not installed")
    monkeypatch.setattr("pdtrim_plugins.recoveries.distill.LARGE", 0)
    context = trained(recovery_context(tiny_llama(), folder=tmp_path))
    # Norms have no adapters.
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed(context)} <= {
        "q_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


def test_quantised_weights_are_refused_by_name(tmp_path: Path) -> None:
    model = tiny_llama()
    projection: Any = model.blocks[4].get_submodule("mlp.up_proj")
    projection.weight = torch.nn.Parameter(projection.weight.to(torch.int8), requires_grad=False)
    context = recovery_context(model, folder=tmp_path)
    with pytest.raises(PdtrimError, match=r"the weight mlp.up_proj.weight of block 4 has the format torch.int8"):
        Distill(**QUICK).recover(context)
