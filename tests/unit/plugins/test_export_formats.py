"""A pair with number formats, exported: what transformers loads again computes bit for bit what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from pdtrim_core.api import BlockModel, Drop, Exporter, KvOnly, LayerOf, Merge, PdtrimError, Plan, Removal, SavedPlan, Shrink
from pdtrim_core.execution.first_tokens import depths_of, first_tokens_of
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.quantized_linear import QuantizedLinear
from pdtrim_core.model.weights import load_modules
from pdtrim_core.pipeline.quantize import layers_in
from pdtrim_core.plan.plan import FirstTokensOf
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan, tiny_host
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.vllm import Vllm
from pdtrim_plugins.quantizers.rtn import RoundToNearest
from tests.unit.execution.test_recovered_layers import recovered
from tests.unit.plugins.exported import decode_logits, logits_of, read_back
from tests.unit.plugins.test_export_vllm import PROMPT, decoded

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")
pytestmark = pytest.mark.numeric

SCHEMES = RoundToNearest.schemes
DECODE = Plan(Removal(), Removal([Drop(2)]))
PAIR = Plan(Removal([Drop(1), KvOnly(4), KvOnly(5)]), Removal([Drop(1), Merge(3, 2)]))


def quantizer(**formats: str) -> RoundToNearest:
    return RoundToNearest(group_size=16, **formats)


def export(
    exporter: Exporter,
    model: BlockModel,
    plan: Plan,
    out: Path,
    by: RoundToNearest,
    *,
    modules: Mapping[Any, nn.Module] | None = None,
) -> dict[Any, nn.Module]:
    """Write a plan with formats; return the modules with which it was measured."""
    outcome = run_with_plan(model, plan, out, modules, quantizer=by)
    list(exporter.export(outcome, model, out))
    return modules_in(out, outcome.plan, model, modules)


def modules_in(out: Path, saved: SavedPlan, model: BlockModel, modules: Mapping[Any, nn.Module] | None) -> dict[Any, nn.Module]:
    given = {**load_modules(saved.plan, model, out / "merges"), **(modules or {})}
    return {**given, **layers_in(out, saved, model, given, tiny_host())}


def check_weights(loaded: Any, modules: Mapping[Any, nn.Module], plan: Plan, stage: Any, model: BlockModel) -> None:
    """Compare the weights that transformers computes with, by layer, with those that were measured."""
    for number, layer in enumerate(plan.layers(stage, model.block_count)):
        block = loaded.get_submodule(model.layout.blocks)[number if stage == "decode" else layer.block]
        for name, part in modules[LayerOf.at(plan, stage, layer)].named_modules():
            if isinstance(part, QuantizedLinear):
                weight = block.get_submodule(name).weight.to(part.weight.dtype)
                assert torch.equal(weight, part.weight), f"{stage}, block {layer.block}, {name}"


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_a_decode_checkpoint_computes_bit_for_bit_what_was_measured(family: str, scheme: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    modules = export(Checkpoints(), model, DECODE, tmp_path, quantizer(decode=scheme))
    wanted = decode_logits(model, DECODE, tmp_path, modules)
    assert units_apart(wanted, decode_logits(model, DECODE, tmp_path)) > 1000 * ROUNDING
    for folder in ("decode", "unified"):
        loaded = read_back(tmp_path / folder)
        assert type(loaded) is type(model.model)
        assert units_apart(logits_of(loaded), wanted) <= ROUNDING
        # They are decompressed when the model first runs.
        check_weights(loaded, modules, DECODE, "decode", model)
    config = json.loads((tmp_path / "decode" / "config.json").read_text())["quantization_config"]
    assert (config["quant_method"], config["ignore"]) == ("compressed-tensors", ["lm_head"])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scales_are_rounded_to_the_number_format_that_the_checkpoint_has(scheme: str, tmp_path: Path) -> None:
    """The model is opened in float32 on a processor, and its checkpoint is in bfloat16: so is what is written."""
    model = tiny_llama()
    for parameter in model.model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16).float()
    model.dtypes = {"": "bfloat16"}
    modules = export(Checkpoints(), model, DECODE, tmp_path, quantizer(decode=scheme))
    with safe_open(tmp_path / "decode" / "model.safetensors", "pt") as weights:
        assert weights.get_tensor("model.layers.0.mlp.up_proj.weight_scale").dtype == torch.bfloat16
        assert weights.get_tensor("model.norm.weight").dtype == torch.bfloat16
    loaded = read_back(tmp_path / "decode", dtype="auto")
    assert loaded.dtype == torch.bfloat16
    logits_of(loaded)
    check_weights(loaded, modules, DECODE, "decode", model)


def test_what_is_written_is_as_small_as_its_format(tmp_path: Path) -> None:
    model = tiny_llama()
    kinds = {}
    for scheme in SCHEMES:
        export(Checkpoints(), model, DECODE, tmp_path / scheme, quantizer(decode=scheme))
        with safe_open(tmp_path / scheme / "decode" / "model.safetensors", "pt") as weights:
            prefix = "model.layers.0.mlp.up_proj."
            own = [weights.get_tensor(name) for name in weights.keys() if name.startswith(prefix)]  # noqa: SIM118 - no mapping
            assert weights.get_tensor("lm_head.weight").dtype == torch.float32
        kinds[scheme] = {tensor.dtype: tensor.nbytes for tensor in own if tensor.dtype != torch.int64}
    numbers, groups = 48 * 32, 48 * 2
    assert kinds == {
        "W8A16": {torch.int32: numbers, torch.float32: 4 * groups},
        "W4A16": {torch.int32: numbers // 2, torch.float32: 4 * groups},
        "W8A8": {torch.int8: numbers, torch.float32: 4 * 48},
        "FP8_DYNAMIC": {torch.float8_e4m3fn: numbers, torch.float32: 4 * 48},
    }


def test_merged_recovered_and_shrunk_layers_are_quantised_as_they_are(tmp_path: Path) -> None:
    model = tiny_llama()
    channels = tuple(range(16))
    plan = Plan(Removal(), Removal([Drop(1), Shrink(5, "mlp", channels), Merge(3, 2)]))
    merges = {Merge(3, 2): model.blocks[3]}
    given = recovered(model, plan, merges, kv=True)
    modules = export(Checkpoints(), model, plan, tmp_path, quantizer(decode="W4A16"), modules=given)
    wanted = decode_logits(model, plan, tmp_path, modules)
    assert units_apart(logits_of(read_back(tmp_path / "decode")), wanted) <= ROUNDING
    assert units_apart(wanted, decode_logits(model, plan, tmp_path, given)) > 1000 * ROUNDING


@pytest.mark.parametrize("plan", [DECODE, PAIR, Plan(Removal([Drop(2)]), Removal([Drop(2)]))], ids=str)
@pytest.mark.parametrize(
    "formats", [{"prefill": "FP8_DYNAMIC", "decode": "W4A16"}, {"prefill": "W8A16"}, {"decode": "W8A8"}], ids=str
)
def test_a_pair_for_vllm_makes_what_was_measured(formats: dict[str, str], plan: Plan, tmp_path: Path) -> None:
    model = tiny_llama()
    modules = export(Vllm(), model, plan, tmp_path, quantizer(**formats))
    prefill, decode = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    pair = TwoPhaseModel(model, plan, modules)
    wanted = pair.generate(PROMPT[0].tolist(), 6)
    rows = list(islice(decoded(prefill, decode), len(wanted)))
    assert [int(row.argmax()) for row in rows] == wanted
    logits = pair.continuation_logits(PROMPT[0].tolist(), wanted)
    assert all(units_apart(row.flatten(), ours) <= ROUNDING for row, ours in zip(rows, logits, strict=True))
    for stage in ("prefill", "decode"):
        told = json.loads((tmp_path / stage / "config.json").read_text())
        assert ("quantization_config" in told) == (stage in formats)


def test_a_table_of_first_tokens_is_written_as_it_was_measured(tmp_path: Path) -> None:
    model, plan = tiny_llama(), PAIR.truncated_prefill(6)
    first = int(PROMPT[0, 0])
    table = {FirstTokensOf(plan): first_tokens_of(model, [first], depths_of(plan, model.block_count))}
    modules = export(Vllm(), model, plan, tmp_path, quantizer(prefill="W4A16", decode="W8A8"), modules=table)
    prefill, decode = read_back(tmp_path / "prefill"), read_back(tmp_path / "decode")
    pair = TwoPhaseModel(model, plan, modules)
    wanted = pair.generate(PROMPT[0].tolist(), 4)
    rows = list(islice(decoded(prefill, decode), len(wanted)))
    logits = pair.continuation_logits(PROMPT[0].tolist(), wanted)
    assert all(units_apart(row.flatten(), ours) <= ROUNDING for row, ours in zip(rows, logits, strict=True))


def test_the_cards_name_the_formats(tmp_path: Path) -> None:
    model = tiny_llama()
    export(Vllm(), model, DECODE, tmp_path, quantizer(prefill="W8A8", decode="W4A16"))
    decode, prefill = ((tmp_path / stage / "README.md").read_text() for stage in ("decode", "prefill"))
    for text in (decode, prefill):
        assert "## Number formats" in text
        assert "* prefill: W8A8\n* decode: W4A16" in text
        assert "by `rtn (" in text
    assert "those of linear layers in W4A16 (compressed-tensors)" in decode
    assert "those of linear layers in W8A8 (compressed-tensors)" in prefill


def recipe_of(exporter: Any, tmp_path: Path, **formats: Any) -> Recipe:
    data = {"model": "tiny:llama", "recovery": "none", "prune": {"blocks": 1}, "formats": formats, "exporter": [exporter]}
    return Recipe.from_data(data, where="mine.toml", out=tmp_path / "run", host=tiny_host())


def problems(exporter: Any, tmp_path: Path, **formats: Any) -> list[str]:
    from pdtrim_core.pipeline.export import export_problems, facts_of

    recipe = recipe_of(exporter, tmp_path, **formats)
    return export_problems(recipe.exporters, recipe.host, facts_of(recipe))


def test_gguf_refuses_formats_before_a_run_and_after_it(tmp_path: Path) -> None:
    words = "a GGUF file has number formats of its own, and cannot hold W4A16, which the recipe gives: leave formats out"
    assert any(words in problem for problem in problems("gguf", tmp_path, decode="W4A16"))
    assert not any("GGUF" in problem for problem in problems("gguf", tmp_path, decode="none"))
    model = tiny_llama()
    with pytest.raises(PdtrimError, match=words):
        export(Gguf(), model, DECODE, tmp_path, quantizer(decode="W4A16"))


@pytest.mark.parametrize("name", ["checkpoints", "vllm"])
def test_quantised_weights_cannot_be_written_in_another_number_format(name: str, tmp_path: Path) -> None:
    told = problems({"use": name, "dtype": "float16"}, tmp_path, prefill="W8A8")
    (problem,) = (problem for problem in told if "dtype" in problem)
    assert problem == (
        f"exporter '{name}': dtype = 'float16': the scales of quantised weights have the number format of the source model: "
        "leave dtype out"
    )
    assert problems({"use": name, "dtype": "float16"}, tmp_path, prefill="none") == []


def test_weights_that_are_gone_are_told(tmp_path: Path) -> None:
    import shutil

    model = tiny_llama()
    outcome = run_with_plan(model, DECODE, tmp_path, quantizer=quantizer(decode="W8A8"))
    shutil.rmtree(tmp_path / "formats")
    with pytest.raises(PdtrimError, match="the plan has quantised weights, and they are not in"):
        list(Checkpoints().export(outcome, model, tmp_path))
