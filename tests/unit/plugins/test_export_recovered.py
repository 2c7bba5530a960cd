"""A recovered pair, exported: decode, prefill and GGUF have the recovered weights, each stage its own."""

from __future__ import annotations

import shutil
import weakref
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pdtrim_core.api import (
    BlockModel,
    Drop,
    Element,
    Exporter,
    KvOnly,
    LayerOf,
    Merge,
    Outcome,
    PdtrimError,
    Plan,
    RecoveredWeights,
    Removal,
    SavedPlan,
    Shrink,
)
from pdtrim_core.execution.recovered_weights import RECOVERED, digest_of, save_recovered
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.execution.walked import Walked
from pdtrim_core.pipeline.export import lent
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import grown, run_with_plan
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.vllm import Vllm
from tests.unit.execution.test_recovered_layers import recovered
from tests.unit.plugins.exported import decode_logits, export, logits_of, parameters_of, read_back
from tests.unit.plugins.test_export_gguf import read_gguf, tokenizer, with_tokenizer
from tests.unit.plugins.test_export_vllm import PLANS, PROMPT, decoded
from tests.unit.recovered_runs import RECIPE, UNIFIED, recovered_run

__all__ = ["tokenizer"]

PAIR = Plan(Removal([Drop(1), KvOnly(4)]), Removal([Drop(1), Merge(3, 2)]))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def made(model: BlockModel, plan: Plan) -> dict[Any, nn.Module]:
    """The modules of a plan, all layers of both stages with weights of their own."""
    merges = {e: grown(model, e) for e in dict.fromkeys((*plan.prefill, *plan.decode)) if isinstance(e, Merge)}
    return recovered(model, plan, merges, kv=bool(model.layout.kv))


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    with safe_open(folder / "model.safetensors", "pt") as weights:
        return {name: weights.get_tensor(name) for name in weights.keys()}  # noqa: SIM118 - no mapping


# Weights that a test made


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_a_decode_checkpoint_of_every_family_is_stock_and_computes_what_the_recovered_stage_does(
    family: str, tmp_path: Path
) -> None:
    model, plan = tiny_model(family), Plan(Removal([Drop(0)]), Removal([Drop(0), Merge(3, 2)]))
    modules = made(model, plan)
    export(Checkpoints(), model, plan, tmp_path, modules=modules)
    wanted = decode_logits(model, plan, tmp_path, modules)
    assert units_apart(wanted, decode_logits(model, plan, tmp_path)) > 1000 * ROUNDING
    for folder in ("decode", "unified"):
        loaded = read_back(tmp_path / folder)
        assert type(loaded) is type(model.model)
        assert units_apart(logits_of(loaded), wanted) <= ROUNDING
    plain = tmp_path / "plain"
    export(Checkpoints(), model, plan, plain, modules={key: modules[key] for key in modules if not isinstance(key, LayerOf)})
    with_names, without = (tensors_of(folder / "decode") for folder in (tmp_path, plain))
    assert {name: tensor.shape for name, tensor in with_names.items()} == {n: tensor.shape for n, tensor in without.items()}


@pytest.mark.numeric
def test_shrunk_blocks_are_written_with_their_recovered_weights(tmp_path: Path) -> None:
    model = tiny_llama()
    plan = Plan(Removal(), Removal([Drop(1), Shrink(5, "mlp", (0, 7)), Shrink(5, "attention", (0,))]))
    modules = made(model, plan)
    export(Checkpoints(), model, plan, tmp_path, modules=modules)
    assert units_apart(logits_of(read_back(tmp_path / "decode")), decode_logits(model, plan, tmp_path, modules)) <= ROUNDING


@pytest.mark.numeric
def test_a_bias_that_stands_for_lost_channels_can_be_recovered_too(tmp_path: Path) -> None:
    model, shrink = tiny_llama(), Shrink(2, "mlp", (3, 4))
    plan = Plan(Removal(), Removal([shrink]))
    out = nn.Linear(46, 32, bias=True).requires_grad_(requires_grad=False)
    modules = recovered(model, plan, {shrink: out}, kv=True)
    export(Checkpoints(), model, plan, tmp_path, modules=modules)
    loaded = read_back(tmp_path / "decode")
    found = loaded.model.layers[2].mlp.down_proj.bias
    assert torch.equal(found, modules[LayerOf(plan, "decode", 2)].get_parameter("mlp.down_proj.bias"))
    assert not torch.equal(found, out.bias)
    assert units_apart(logits_of(loaded), decode_logits(model, plan, tmp_path, modules)) <= ROUNDING


def check_pair(model: BlockModel, plan: Plan, modules: Mapping[Any, nn.Module], out: Path) -> None:
    """Read an export for vLLM back and hand the cache over: it makes what our two phases make of the recovered pair."""
    prefill, decode = read_back(out / "prefill"), read_back(out / "decode")
    reference = TwoPhaseModel(model, plan, modules)
    wanted = reference.generate(PROMPT[0].tolist(), 8)
    rows = list(islice(decoded(prefill, decode), len(wanted)))
    assert [int(row.argmax()) for row in rows] == wanted
    assert units_apart(torch.stack(rows), reference.continuation_logits(PROMPT[0].tolist(), wanted)) <= ROUNDING
    assert type(decode) is type(model.model)
    assert parameters_of(prefill) == model.sizes.kept_parameters(plan.truncated_prefill(model.block_count), "prefill")


FOUR_HEADS: dict[str, Any] = {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8}
HEADS: list[Element] = [Shrink(block, "attention", (0, 2)) for block in range(6)]
MORE: dict[str, tuple[list[Element], list[Element]]] = {
    "frozen merge at the end": ([], [Merge(4, 5, "frozen")]),
    "prefill passes two blocks by": ([Drop(1), KvOnly(3), KvOnly(4)], [Drop(1)]),
    "heads that both lost": (HEADS, HEADS),
    "heads that both lost, and blocks": (
        [*HEADS[:1], *HEADS[2:4], *HEADS[5:], Drop(1), KvOnly(4)],
        [*HEADS[:1], *HEADS[2:], Drop(1)],
    ),
    "heads that both lost, behind K/V alone": ([*HEADS[:3], KvOnly(3), *HEADS[4:]], HEADS),
    "narrow blocks": ([Shrink(2, "mlp", (1, 2, 3))], [Shrink(block, "mlp", (1, 2, 3)) for block in range(6)]),
}


@pytest.mark.numeric
@pytest.mark.parametrize("name", [*PLANS, *MORE])
def test_the_pair_makes_the_tokens_of_our_two_phases_on_recovered_layers(name: str, tmp_path: Path) -> None:
    model = tiny_model("qwen3" if "merge" in name else "llama", **(FOUR_HEADS if "heads" in name else {}))
    prefill, decode = {**PLANS, **MORE}[name]
    plan = Plan(prefill=Removal(prefill), decode=Removal(decode))
    modules = made(model, plan)
    export(Vllm(), model, plan, tmp_path, modules=modules)
    check_pair(model, plan, modules, tmp_path)


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("prefill", [(), (2,), (0,)])
def test_decode_is_what_it_is_whatever_heads_prefill_lost(
    prefill: tuple[int, ...], recover: bool, tmp_path: Path, tokenizer: Any
) -> None:
    model = with_tokenizer(tiny_llama(**FOUR_HEADS), tokenizer)
    of_prefill = [Shrink(block, "attention", prefill) for block in range(6)] if prefill else []
    plan = Plan(Removal(of_prefill), Removal([*HEADS[:3], Drop(3), *HEADS[4:]]))
    modules = made(model, plan) if recover else {}
    for exporter in (Checkpoints(), Gguf()):
        export(exporter, model, plan, tmp_path, modules=modules)
    wanted = decode_logits(model, plan, tmp_path, modules)
    assert units_apart(logits_of(read_back(tmp_path / "decode")), wanted) <= ROUNDING
    assert units_apart(logits_of(read_gguf(tmp_path)), wanted) <= ROUNDING
    with pytest.raises(PdtrimError, match="decode has fewer K/V heads than prefill in the blocks 0, 1, 2, 4, 5"):
        export(Vllm(), model, plan, tmp_path / "pair", modules=modules)


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_gguf_file_has_the_recovered_weights(family: str, tmp_path: Path, tokenizer: Any) -> None:
    model = with_tokenizer(tiny_model(family), tokenizer)
    modules = made(model, PAIR)
    export(Gguf(), model, PAIR, tmp_path, modules=modules)
    wanted = decode_logits(model, PAIR, tmp_path, modules)
    assert units_apart(wanted, decode_logits(model, PAIR, tmp_path)) > 1000 * ROUNDING
    assert units_apart(logits_of(read_gguf(tmp_path)), wanted) <= ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_recovered_weights_are_stored_in_the_format_that_was_asked_for(dtype: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    modules = made(model, PAIR)
    export(Vllm(dtype=dtype), model, PAIR, tmp_path, modules=modules)
    for folder in ("decode", "prefill"):
        assert {tensor.dtype for tensor in tensors_of(tmp_path / folder).values()} == {getattr(torch, dtype)}
    wanted = modules[LayerOf(PAIR, "prefill", 4)].get_parameter("self_attn.k_proj.weight")
    found = tensors_of(tmp_path / "prefill")["model.layers.4.self_attn.k_proj.weight"]
    assert torch.equal(found, wanted.to(getattr(torch, dtype)))


@pytest.mark.parametrize("exporter", [Checkpoints(max_shard=1e-5), Vllm(max_shard=1e-5), Gguf()], ids=lambda one: one.name)
def test_recovered_weights_are_in_memory_a_layer_at_a_time(
    exporter: Exporter, tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, plan = with_tokenizer(tiny_llama(), tokenizer), Plan(Removal([KvOnly(4)]), Removal([Drop(2)]))
    outcome = run_with_plan(model, plan, tmp_path, made(model, plan))
    held: weakref.WeakSet[nn.Parameter] = weakref.WeakSet()
    most, given_to = 0, RecoveredWeights.given_to

    def watched(self: RecoveredWeights, module: nn.Module, stage: Any, layer: Any) -> nn.Module:
        nonlocal most
        found = given_to(self, module, stage, layer)
        held.update(weight for weight in found.parameters() if all(weight is not one for one in module.parameters()))
        most = max(most, len({id(weight) for weight in held}))
        return found

    monkeypatch.setattr(RecoveredWeights, "given_to", watched)
    list(exporter.export(outcome, model, tmp_path))
    # One layer that is on its way to the disk, and one that comes next.
    assert 0 < most <= 2 * len(list(model.blocks[0].parameters()))


@pytest.mark.parametrize("exporter", [Checkpoints(), Vllm(), Gguf()], ids=lambda exporter: exporter.name)
@pytest.mark.parametrize("way", ["missing", "other"])
def test_a_run_without_its_own_recovered_weights_is_refused_and_nothing_is_written(
    way: str, exporter: Exporter, tmp_path: Path, tokenizer: Any
) -> None:
    model = with_tokenizer(tiny_llama(), tokenizer)
    outcome = run_with_plan(model, PAIR, tmp_path, made(model, PAIR))
    if way == "missing":
        shutil.rmtree(tmp_path / RECOVERED)
    else:
        save_recovered(PAIR, model, {**made(model, PAIR), LayerOf(PAIR, "decode", 0): model.blocks[0]}, tmp_path / RECOVERED)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(PdtrimError) as caught:
        list(exporter.export(outcome, model, tmp_path))
    folder = tmp_path / RECOVERED
    assert str(caught.value) == (
        f"the plan has recovered weights, and they are not in {folder}: name the folder of its run, or run the recipe again"
        if way == "missing"
        else f"{folder} has not the weights that the plan was recovered with: run the recipe again"
    )
    assert sorted(tmp_path.iterdir()) == before


def test_both_files_of_a_unified_plan_are_the_same_and_so_are_both_models(tmp_path: Path) -> None:
    model, plan = tiny_llama(), Plan.unified(Removal([Drop(1), Merge(3, 2)]))
    walked = Walked(model, plan, {Merge(3, 2): grown(model, Merge(3, 2))}, ())
    for layer in walked.layers("decode"):
        weight = walked.module("decode", layer).get_parameter("mlp.down_proj.weight")
        walked.change("decode", layer, {"mlp.down_proj.weight": 1.1 * weight})
    export(Vllm(), model, plan, tmp_path, modules=walked.modules)
    files = [tmp_path / RECOVERED / f"{stage}.safetensors" for stage in ("prefill", "decode")]
    assert files[0].read_bytes() == files[1].read_bytes()
    check_pair(model, plan, walked.modules, tmp_path)
    prefill, decode = tensors_of(tmp_path / "prefill"), tensors_of(tmp_path / "decode")
    # Prefill keeps the dense model's numbers; its last block computes only K/V.
    for own, in_decode in (("0", "0"), ("2", "1"), ("4", "2")):
        assert torch.equal(
            prefill[f"model.layers.{own}.mlp.down_proj.weight"], decode[f"model.layers.{in_decode}.mlp.down_proj.weight"]
        )


# Runs


def card_of(folder: Path) -> str:
    return (folder / "README.md").read_text()


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "opt"])
def test_a_recovered_run_is_exported_as_it_is_measured(family: str, tmp_path: Path) -> None:
    run = recovered_run(tmp_path / "run", f"tiny:{family}", exporter=["checkpoints"])
    saved = run.outcome.plan
    assert saved.recovered == digest_of(run.path / RECOVERED) != ""
    assert any(result.kept for result in run.outcome.recovery)
    wanted = decode_logits(run.dense, saved.plan, run.path, run.modules)
    assert units_apart(wanted, decode_logits(run.dense, saved.plan, run.path)) > 1000 * ROUNDING
    loaded = read_back(run.path / "decode")
    assert type(loaded) is type(run.dense.model)
    assert units_apart(logits_of(loaded), wanted) <= ROUNDING


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen3"])
def test_a_recovered_run_is_exported_for_vllm_under_another_folder(family: str, tmp_path: Path) -> None:
    run, out = recovered_run(tmp_path / "run", f"tiny:{family}"), tmp_path / "out"
    assert [result.name for result in run.outcome.recovery if result.kept] == ["kv-refit", "fold"]
    with lent(run.path, out):
        written = list(Vllm().export(run.outcome, run.dense, out))
    assert written == [out / "decode", out / "prefill", out / "serve"] == sorted(out.iterdir())
    check_pair(run.dense, run.outcome.plan.plan, run.modules, out)
    assert SavedPlan.from_json((out / "serve" / "plan.json").read_text()) == run.outcome.plan
    refused = tmp_path / "refused"
    with pytest.raises(PdtrimError, match=f"they are not in {refused / RECOVERED}: name the folder of its run"):
        list(Vllm().export(run.outcome, run.dense, refused))


@pytest.mark.parametrize("pruner", ["laco", "shortgpt"])
def test_what_other_pruners_removed_is_recovered_and_exported(pruner: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"searcher": None, "prune": {"blocks": 2}, "splitter": "unified", "pruner": pruner}
    run = recovered_run(tmp_path / "run", **changes, exporter=["vllm"])
    assert run.outcome.plan.recovered
    check_pair(run.dense, run.outcome.plan.plan, run.modules, run.path)


def test_where_both_stages_are_one_model_both_files_are_the_same(tmp_path: Path) -> None:
    run = recovered_run(tmp_path / "run", **UNIFIED)
    plan = run.outcome.plan.plan
    assert plan.prefill == plan.decode
    files = [run.path / RECOVERED / f"{stage}.safetensors" for stage in ("prefill", "decode")]
    assert files[0].read_bytes() == files[1].read_bytes()
    list(Checkpoints().export(run.outcome, run.dense, run.path))
    loaded = read_back(run.path / "unified")
    assert units_apart(logits_of(loaded), decode_logits(run.dense, plan, run.path, run.modules)) <= ROUNDING
    pair = TwoPhaseModel(run.dense, plan, run.modules, first_token="prefill")
    with torch.inference_mode():
        alone = loaded.generate(PROMPT, max_new_tokens=8, do_sample=False, pad_token_id=0)[0, PROMPT.shape[1] :].tolist()
    assert pair.generate(PROMPT[0].tolist(), 8) == alone


def table_under(heading: str, card: str) -> list[list[str]]:
    lines = card.partition(f"## {heading}\n\n")[2].partition("\n\n## ")[0].splitlines()
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines if line.startswith("| ")][2:]


def test_the_card_tells_what_was_recovered_from_how_much_and_what_it_was_good_for(tmp_path: Path) -> None:
    run = recovered_run(tmp_path / "run", exporter=["vllm"])
    refit, fold = run.outcome.recovery
    for folder in ("decode", "prefill"):
        card = card_of(run.path / folder)
        assert "The layers that are left have other weights than in the source model. Texts: written by the dense model." in card
        rows = table_under("What was recovered", card)
        assert [row[0] for row in rows] == [
            "kv-refit (tokens = 2400, ridge = 0.01)",
            "fold (tokens = 600, stage = both, fit = projection, ridge = 0.1)",
        ]
        for row, result in zip(rows, (refit, fold), strict=True):
            assert row[1] == f"{result.texts:,} texts, {result.tokens:,} tokens"
            assert row[2:4] == [f"{result.changed[stage]:,}" for stage in ("prefill", "decode")]
            assert row[4].startswith(f"{result.before.value:.4g}")
            assert row[5].startswith(f"{result.after.value:.4g}")
            assert row[6] == "yes"


def test_the_card_says_where_recovery_was_good_for_nothing_and_nothing_where_there_was_none(tmp_path: Path) -> None:
    # Nothing is passed by, so there is nothing to fit.
    run = recovered_run(tmp_path / "run", **{**UNIFIED, "splitter": "dense-prefill"}, recovery=["kv-refit"])
    assert not any(result.kept for result in run.outcome.recovery)
    assert run.outcome.plan.recovered == ""
    list(Checkpoints().export(run.outcome, run.dense, run.path))
    card = card_of(run.path / "decode")
    assert "Nothing: no recovery brought the pair nearer to the dense model" in card
    assert table_under("What was recovered", card)[0][6] == "no"
    export(Checkpoints(), tiny_llama(), [Drop(1)], tmp_path)
    assert "recovered" not in card_of(tmp_path / "decode")


def test_the_card_names_files_of_training_text_without_their_folders(tmp_path: Path) -> None:
    text = tmp_path / "private" / "text.txt"
    text.parent.mkdir()
    text.write_text("\n\n".join(f"Paragraph {number} has some words to learn from." for number in range(400)))
    data = {**RECIPE["recovery_data"], "sources": ["generated", str(text)]}
    run = recovered_run(tmp_path / "run", recovery_data=data, recovery=["fold"], exporter=["checkpoints"])
    card = card_of(run.path / "decode")
    assert "Texts: written by the dense model, text.txt." in card
    assert "private" not in card


def test_a_run_that_goes_on_writes_the_same_export_again(tmp_path: Path) -> None:
    first = recovered_run(tmp_path / "run", exporter=["vllm"])
    before = {file: file.read_bytes() for file in first.path.glob("*/model.safetensors")}
    again: Outcome = recovered_run(tmp_path / "run", exporter=["vllm"]).outcome
    assert again.plan == first.outcome.plan
    assert {file: file.read_bytes() for file in first.path.glob("*/model.safetensors")} == before
