from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pdtrim_core.data.items import Item
from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import PluginHost
from pdtrim_core.model.quantized_linear import QuantizedLinear
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.apply import apply
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.pipeline.run_fidelity import RunFidelity
from pdtrim_core.plan.elements import KvOnly
from pdtrim_core.plan.plan import LayerOf
from pdtrim_core.plan.plan_file import SavedPlan
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.outcome import Outcome
from pdtrim_core.testing import tiny_transformers
from pdtrim_core.testing.contracts.small_run import tiny_host

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")

RECIPE: dict[str, Any] = {
    "model": {"path": "tiny:llama"},
    "prune": {"blocks": 1, "merges": False},
    "recovery": "none",
    "calibration": {"use": "mini", "samples": 6, "held_out": 3},
    "searcher": "greedy",
    "splitter": "dense-prefill",
    "objective": "kl",
    "evaluation": {"threads": 1, "answer_tokens": 4},
    "report": [],
}
BOTH: dict[str, Any] = {"decode": "W4A16", "prefill": "W8A8", "group_size": 16}
DECODE: dict[str, Any] = {"decode": "W4A16", "group_size": 16}
REFIT: dict[str, Any] = {"use": "fold", "tokens": 600}


@pytest.fixture
def host() -> PluginHost:
    return tiny_host()


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def ran(host: PluginHost, out: Path, formats: Any = BOTH, **changes: Any) -> Outcome:
    data = {**RECIPE, **changes, **({} if formats is None else {"formats": formats})}
    return pipeline.run(Recipe.from_data(data, where="x.toml", out=out, host=host), host)


def linears(loaded: LoadedRun, stage: Any) -> list[QuantizedLinear]:
    modules = [module for key, module in loaded.modules.items() if isinstance(key, LayerOf) and key.stage == stage]
    return [part for module in modules for part in module.modules() if isinstance(part, QuantizedLinear)]


def test_a_run_measures_the_formats_and_all_that_opens_it_finds_the_same(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run")
    assert outcome.plan.formats is not None
    assert str(outcome.plan.formats) == "prefill W8A8, decode W4A16 by rtn"
    assert json.loads((tmp_path / "run" / "plan.json").read_text())["format"] == 3
    assert outcome.fidelity is not None
    figures = {variant: metrics["kl"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert list(figures) == ["dense", "unified", "unquantized", "staged"]
    assert figures["staged"] != figures["unquantized"]
    assert outcome.fidelity.quantized is not None
    assert outcome.fidelity.quantized.value == pytest.approx(figures["staged"] - figures["unquantized"])
    loaded = load_run(tmp_path / "run", host)
    assert {part.scheme for part in linears(loaded, "decode")} == {"W4A16"}
    assert {part.scheme for part in linears(loaded, "prefill")} == {"W8A8"}
    again = {result.variant: result for result in RunFidelity(loaded).results(("unquantized", "staged"), fresh=True)}
    assert {variant: again[variant].metrics["kl"].value for variant in again} == {
        variant: pytest.approx(figures[variant], abs=1e-5) for variant in again
    }
    digests = [loaded.plan_digest(variant) for variant in ("staged", "unquantized", "unified")]
    assert len(set(digests)) == 3


def test_what_is_not_quantised_is_as_in_a_run_without_formats(host: PluginHost, tmp_path: Path) -> None:
    plain, with_formats = (ran(host, tmp_path / name, formats) for name, formats in (("a", None), ("b", BOTH)))
    assert plain.plan.plan == with_formats.plan.plan
    assert plain.plan.formats is None
    assert plain.row("dense") == with_formats.row("dense")
    assert plain.row("staged") != with_formats.row("staged")
    assert plain.fidelity is not None
    assert with_formats.fidelity is not None
    assert plain.fidelity.variants["staged"] == with_formats.fidelity.variants["unquantized"]
    assert not (tmp_path / "a" / "formats").exists()
    assert "quantise" not in plain.seconds


def test_none_is_as_if_nothing_was_said(host: PluginHost, tmp_path: Path) -> None:
    plain, none = (ran(host, tmp_path / name, formats) for name, formats in (("a", None), ("b", {"decode": "none"})))
    assert plain.plan == none.plan
    assert plain.rows == none.rows


def test_apply_gives_the_same_quantised_pair(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run")
    loaded, item = load_run(tmp_path / "run", host), Item(((5, 6, 7, 8),), ((1, 2, 3),), 0, (1,), "one")
    of_run, of_folder, of_file = (
        apply(given, tiny_transformers("llama")).loglikelihoods([item])
        for given in (loaded, tmp_path / "run", tmp_path / "run" / "plan.json")
    )
    assert of_run == of_folder == of_file
    bare = apply(loaded.outcome.plan.plan, tiny_transformers("llama")).loglikelihoods([item])
    assert bare != of_run
    with pytest.raises(PdtrimError, match="this plan has quantised weights, which lie in the folder of its run"):
        apply(SavedPlan.from_json((tmp_path / "run" / "plan.json").read_text()), tiny_transformers("llama"))


def test_the_same_recipe_gives_the_same_plan_and_goes_on_where_it_was(host: PluginHost, tmp_path: Path) -> None:
    first, second = ran(host, tmp_path / "a"), ran(host, tmp_path / "b")
    assert first.plan == second.plan
    again = ran(host, tmp_path / "a")
    assert again.plan == first.plan
    assert again.rows == first.rows
    assert again.candidates["measured"] == first.candidates["measured"]


def test_other_formats_are_another_recipe(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run")
    with pytest.raises(PdtrimError, match=r"another recipe, which differs in formats\.decode"):
        ran(host, tmp_path / "run", {**BOTH, "decode": "W8A16"})


def test_recovered_layers_are_quantised_as_they_were_recovered(host: PluginHost, tmp_path: Path) -> None:
    outcome = ran(host, tmp_path / "run", DECODE, recovery=[REFIT])
    assert any(result.kept for result in outcome.recovery)
    assert outcome.plan.recovered
    assert outcome.fidelity is not None
    assert list(outcome.fidelity.variants) == ["dense", "unified", "unrecovered", "unquantized", "staged"]
    loaded = load_run(tmp_path / "run", host)
    recovered = [key for key in loaded.unquantized if isinstance(key, LayerOf) and key.stage == "decode"]
    assert recovered
    for key in recovered:
        for name, weight in loaded.unquantized[key].named_parameters():
            part = loaded.modules[key].get_submodule(name.rpartition(".")[0])
            if isinstance(part, QuantizedLinear) and name.endswith(".weight"):
                assert torch.equal(part.source.weight, weight)
                assert not torch.equal(part.weight, weight)
    plain = outcome.fidelity.variants
    assert outcome.fidelity.recovered is not None
    assert outcome.fidelity.recovered.value == pytest.approx(plain["unrecovered"]["kl"].value - plain["unquantized"]["kl"].value)


@pytest.mark.parametrize("truncate", [True, False])
def test_a_model_that_loses_no_block_can_have_formats(host: PluginHost, tmp_path: Path, truncate: bool) -> None:
    evaluation = {**RECIPE["evaluation"], "truncate_prefill": truncate}
    outcome = ran(host, tmp_path / "run", BOTH, prune={"blocks": 0}, evaluation=evaluation)
    assert outcome.row("dense").calibration.mean == 0
    assert outcome.fidelity is not None
    figures = {variant: metrics["kl"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert figures["dense"] == 0
    assert figures["unquantized"] < 1e-6
    assert figures["staged"] > 1e-4
    # Decode's format in both stages is another model than a format for each.
    assert outcome.row("unified").calibration.mean != outcome.row("staged").calibration.mean
    assert figures["unified"] != figures["staged"]
    # A format makes other answers, which nothing of the plan tells.
    identical = {variant: metrics["identical"].value for variant, metrics in outcome.fidelity.variants.items()}
    assert identical["dense"] == 1
    assert identical["staged"] < 1


@pytest.mark.parametrize("blocks", [0, 1])
@pytest.mark.parametrize("formats", [{"prefill": "W8A8"}, BOTH])
def test_prefill_as_a_model_of_its_own_has_its_format_in_every_block(
    host: PluginHost, tmp_path: Path, blocks: int, formats: Any
) -> None:
    # Decode needs only the K/V of its last block, and only those are in the folder of the run.
    ran(host, tmp_path / "run", {"group_size": 16, **formats}, prune={"blocks": blocks, "merges": False})
    loaded = load_run(tmp_path / "run", host)
    plan, modules = loaded.plan_of("prefill"), loaded.modules_of("prefill")
    for stage in ("prefill", "decode"):
        for layer in plan.layers(stage, loaded.dense.block_count):
            parts = [part for part in modules[LayerOf.at(plan, stage, layer)].modules() if isinstance(part, nn.Linear)]
            assert [getattr(part, "scheme", None) for part in parts] == ["W8A8"] * 7
    assert KvOnly(loaded.outcome.plan.plan.slots(loaded.dense.block_count)[-1].block) in loaded.outcome.plan.plan.prefill


def test_prefill_alone_is_that_of_the_model_where_only_decode_has_a_format(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run", DECODE)
    loaded = load_run(tmp_path / "run", host)
    plan = loaded.plan_of("prefill")
    assert not [key for key in loaded.modules_of("prefill") if isinstance(key, LayerOf) and key.plan == plan]


def test_costs_count_the_bytes_that_are_stored(host: PluginHost, tmp_path: Path) -> None:
    plain, outcome = ran(host, tmp_path / "a", None), ran(host, tmp_path / "b", DECODE)
    folder = tmp_path / "b" / "formats"
    loaded = load_run(tmp_path / "b", host)
    numbers = sum(part.weight.numel() for part in linears(loaded, "decode"))
    from safetensors.torch import load_file

    stored = sum(tensor.nbytes for tensor in load_file(folder / "decode.safetensors").values())
    assert outcome.cost("decode weight traffic").plan == plain.cost("decode weight traffic").plan - 4 * numbers + stored
    assert outcome.cost("parameters of decode") == plain.cost("parameters of decode")
    decode, prefill = outcome.cost("weights of decode"), outcome.cost("weights of prefill")
    assert decode.plan == 4 * outcome.cost("parameters of decode").plan - 4 * numbers + stored
    assert prefill.plan == 4 * outcome.cost("parameters of prefill").plan
    assert any(note.startswith("formats: decode has W4A16, ") for note in outcome.notes)


def test_a_variant_without_formats_is_told_where_there_are_none(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run", None)
    loaded = load_run(tmp_path / "run", host)
    with pytest.raises(PdtrimError, match="has no variant 'unquantized': its recipe names no formats"):
        loaded.plan_of("unquantized")


@pytest.mark.parametrize("name", ["decode.safetensors", "formats.json"])
def test_a_run_whose_quantised_weights_are_damaged_or_gone_is_refused(host: PluginHost, tmp_path: Path, name: str) -> None:
    ran(host, tmp_path / "run", DECODE, evaluation={**RECIPE["evaluation"], "fidelity": False})
    file = tmp_path / "run" / "formats" / name
    kept = file.read_bytes()
    file.write_bytes(kept[:-2] + b"xx")
    with pytest.raises(PdtrimError, match="has not the quantised weights of the plan: run the recipe again"):
        _ = load_run(tmp_path / "run", host).modules
    file.unlink()
    with pytest.raises(PdtrimError, match="quantised weights"):
        apply(tmp_path / "run", tiny_transformers("llama"), host=host)


def test_a_quantizer_that_is_not_installed_any_more_is_named(host: PluginHost, tmp_path: Path) -> None:
    ran(host, tmp_path / "run", DECODE, evaluation={**RECIPE["evaluation"], "fidelity": False})
    with pytest.raises(PdtrimError, match="there is no quantizer 'rtn'"):
        apply(tmp_path / "run", tiny_transformers("llama"), host=_without_quantizers(host))


def _without_quantizers(host: PluginHost) -> PluginHost:
    class Host:
        def find(self, kind: str, name: str) -> Any:
            return PluginHost().find(kind, name)

        def find_blocks(self, model: Any, name: str) -> Any:
            return host.find_blocks(model, name)

    return Host()  # type: ignore[return-value]
