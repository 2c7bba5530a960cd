"""Models whose weights accelerate keeps on the disk, and hashes of weights that are made once."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from pdtrim_core import Drop, Plan, Recipe, Removal, run
from pdtrim_core.api import BlockModel, Exporter, ExportFacts, PdtrimError
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model import fingerprints
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.testing import ByteTokenizer, tiny_transformers
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from tests.unit.execution.test_staged_model import some_items

if TYPE_CHECKING:
    from pdtrim_core import PluginHost

PLACES: dict[str, Any] = {
    "model.embed_tokens": "cpu",
    "model.norm": "cpu",
    "model.rotary_emb": "cpu",
    "lm_head": "cpu",
    **{f"model.layers.{block}": "cpu" if block < 2 else "disk" for block in range(6)},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def offloaded(folder: Path, host: PluginHost) -> BlockModel:
    """A model with most of its blocks on the disk."""
    options: dict[str, Any] = {"device_map": PLACES, "offload_folder": str(folder / "offload")}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    assert any(weight.is_meta for weight in model.parameters())
    return BlockModel(model, ByteTokenizer(), host.find_blocks(model, "tiny"), name="tiny")


def test_a_model_on_the_disk_opens_and_gives_the_numbers_of_one_in_memory(folder: Path, host: PluginHost) -> None:
    ordinary, on_disk = open_model(FolderModel(path=str(folder), placement="cpu"), host), offloaded(folder, host)
    on_disk.check_finite()
    assert on_disk.device == torch.device("cpu")
    assert on_disk.fingerprint == ordinary.fingerprint
    assert on_disk.exact_fingerprint == ordinary.exact_fingerprint
    plan = Plan(decode=Removal([Drop(3)]))
    one, other = (
        StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan).loglikelihoods(some_items())
        for model in (ordinary, on_disk)
    )
    for values, same in zip(one, other, strict=True):
        # Where its weights lie in memory decides the last digit.
        assert values == pytest.approx(same, abs=1e-3)


def test_a_weight_on_the_disk_that_is_not_finite_is_named(folder: Path, host: PluginHost) -> None:
    model = tiny_transformers("llama")
    with torch.no_grad():
        model.model.layers[4].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(PdtrimError, match=r"the weight model\.layers\.4\.mlp\.up_proj\.weight holds a NaN"):
        offloaded(folder, host).check_finite()


def test_a_model_without_any_numbers_is_refused(host: PluginHost) -> None:
    model = tiny_transformers("llama")
    layout = host.find_blocks(model, "tiny")
    blocks = BlockModel(model, ByteTokenizer(), layout, name="tiny")
    model.to("meta")
    with pytest.raises(PdtrimError, match=r"^the weight lm_head\.weight holds no numbers: the model is on the meta device$"):
        blocks.check_finite()


def test_weights_are_hashed_once_for_files_that_stay_as_they_are(
    folder: Path, tmp_path: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = FolderModel(path=str(folder), placement="cpu")
    expected = [open_model(source, host).fingerprint, open_model(source, host).exact_fingerprint]
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr(fingerprints, "WORTH_KEEPING", 1)
    model = open_model(source, host)
    assert [model.fingerprint, model.exact_fingerprint] == expected
    kept = tmp_path / "cache" / "pdtrim-core" / fingerprints.FOLDER
    assert len(list(kept.iterdir())) == 2

    def read(*_: object, **__: object) -> None:
        raise AssertionError("the weights are read again")

    monkeypatch.setattr(fingerprints, "weights_of", read)
    again = open_model(source, host)
    assert [again.fingerprint, again.exact_fingerprint] == expected
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "WORTH_KEEPING", 1)
    tiny_transformers("llama", seed=1).save_pretrained(folder)
    assert open_model(source, host).fingerprint != expected[0]
    assert len(list(kept.iterdir())) == 3


def test_a_cache_that_cannot_be_written_costs_time_alone(
    folder: Path, tmp_path: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fingerprints, "WORTH_KEEPING", 1)
    assert len(open_model(FolderModel(path=str(folder), placement="cpu"), host).fingerprint) == 64


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ({"recovery": "none"}, ""),
        ({"recovery": "fold"}, "recovery 'fold'"),
        ({"recovery": "none", "prune": {"blocks": 1, "merges": True}}, "prune.merges = true"),
        ({"recovery": "none", "pruner": "flap"}, "pruner 'flap'"),
        ({"recovery": "none", "scorer": "norm"}, ""),
        ({"recovery": "none", "exporter": "checkpoints"}, "exporter 'checkpoints'"),
    ],
)
def test_a_run_says_before_it_measures_what_needs_weights_that_found_no_room(
    parts: dict[str, Any], named: str, folder: Path, tmp_path: Path, host: PluginHost
) -> None:
    data = {
        "model": {"path": str(folder), "placement": {"cpu": "60KB", "disk": "1GB"}},
        "calibration": {"samples": 4, "held_out": 2},
        "evaluation": {"fidelity": False},
        "report": [],
        "prune": {"blocks": 1},
        **({"searcher": "greedy"} if "pruner" not in parts else {}),
        **parts,
    }
    recipe = Recipe.from_data(data, where="offloaded", out=tmp_path / "run", host=host)
    if not named:
        assert run(recipe, host).plan.plan.decode.blocks_removed == 1
        return
    with pytest.raises(PdtrimError, match=r"found no room where they compute.*say model\.placement = cpu, or stream") as error:
        run(recipe, host)
    assert named in str(error.value)


def test_what_a_run_found_is_not_exported_from_weights_that_found_no_room(folder: Path, tmp_path: Path, host: PluginHost) -> None:
    facts = ExportFacts("tiny", tmp_path, dict, offloaded=True)
    exporters = [provided.component() for provided in host.of_kind("exporter")]
    refused = {exporter.name for exporter in exporters if isinstance(exporter, Exporter) and exporter.core_problems(facts)}
    assert refused == {exporter.name for exporter in exporters} - {"plan"}
