"""Exports of ours whose blocks differ are pruned again: opened, scored, pruned by every kind of pruner, and exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import PdtrimError, PluginHost, Removal, Shrink
from pdtrim_core.api import BlockModel, Drop, DropPart, Element, Plan
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.pipeline import pipeline
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.model_sources.folder import FolderModel
from tests.unit.plugins.exported import TOKENS, decode_logits, export, logits_of, parameters_of, read_back

FIRST: dict[str, list[Element]] = {
    "llama": [Shrink(1, "attention", (0,)), Shrink(1, "mlp", (2, 5)), Shrink(4, "mlp", tuple(range(8))), Drop(2)],
    "mixtral": [Shrink(1, "experts", (0,)), Shrink(3, "experts", (1, 3)), Shrink(3, "attention", (1,)), Drop(5)],
}
SECOND: dict[str, list[list[Element]]] = {
    "llama": [
        [Drop(1)],
        [Drop(0), Shrink(1, "mlp", (0,)), Shrink(2, "attention", (1,))],
        [DropPart(1, "attention"), DropPart(3, "mlp")],
        [Shrink(3, "mlp", (7,)), Shrink(0, "mlp", (1, 2))],
    ],
    "mixtral": [[Drop(1)], [Shrink(1, "experts", (2,)), Shrink(0, "experts", (0, 1))], [DropPart(3, "attention"), Drop(0)]],
}
CASES = [(family, elements) for family, all_of in SECOND.items() for elements in all_of]


def again(family: str, host: PluginHost, folder: Path) -> BlockModel:
    """Return the export of a first round, opened as a model of its own."""
    source = save_tiny_model(folder / "dense", family)
    loaded = FolderModel(path=str(source), placement="cpu").open()
    dense = BlockModel(loaded.model, loaded.tokenizer, host.find_blocks(loaded.model, family), name=family)
    export(Checkpoints(), dense, FIRST[family], folder / "first")
    loaded = FolderModel(path=str(folder / "first" / "decode"), placement="cpu").open()
    found = BlockModel(loaded.model, loaded.tokenizer, host.find_blocks(loaded.model, "again"), name="again")
    assert torch.allclose(logits_of(found.model), decode_logits(dense, FIRST[family], folder / "first"), atol=1e-5)
    assert found.layout == dense.layout
    return found


@pytest.mark.parametrize(("family", "elements"), CASES, ids=str)
def test_what_was_pruned_is_pruned_again_and_exported(
    family: str, elements: list[Element], host: PluginHost, tmp_path: Path
) -> None:
    model = again(family, host, tmp_path)
    plan = Plan.unified(Removal(elements))
    prompt = TOKENS[0, :12].tolist()
    made = TwoPhaseModel(model, plan).generate(prompt, 6)
    export(Checkpoints(), model, elements, tmp_path / "second")
    found = read_back(tmp_path / "second" / "decode")
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)
    assert parameters_of(found) == model.sizes.kept_parameters(plan, "decode")
    with torch.inference_mode():
        text = found.generate(TOKENS[:1, :12], max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert text[0, 12 : 12 + len(made)].tolist() == made


def test_a_second_round_that_makes_blocks_alike_is_an_ordinary_checkpoint(host: PluginHost, tmp_path: Path) -> None:
    model = again("mixtral", host, tmp_path)
    counts = [model.units(block).count("experts") for block in range(model.block_count)]
    assert counts == [4, 3, 4, 2, 4]
    elements: list[Element] = [
        *(Shrink(block, "experts", tuple(range(count - 2))) for block, count in enumerate(counts) if count > 2),
        *(Shrink(block, "attention", (1,)) for block in range(model.block_count) if block != 3),
    ]
    export(Checkpoints(), model, elements, tmp_path / "second")
    config = json.loads((tmp_path / "second" / "decode" / "config.json").read_text(encoding="utf-8"))
    assert (config["model_type"], config["num_local_experts"], config["num_key_value_heads"]) == ("mixtral", 2, 1)
    assert config["architectures"] == ["MixtralForCausalLM"]
    found = read_back(tmp_path / "second" / "decode")
    assert type(found).__name__ == "MixtralForCausalLM"
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)


def first_round(family: str, host: PluginHost, tmp_path: Path) -> Path:
    again(family, host, tmp_path)
    return tmp_path / "first" / "decode"


def recipe_of(folder: Path, host: PluginHost, out: Path, **more: Any) -> Recipe:
    data: dict[str, Any] = {
        "model": {"path": str(folder), "placement": "cpu"},
        "calibration": {"use": "mini", "samples": 4, "held_out": 2},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
        "recovery": "none",
        "exporter": ["checkpoints"],
        "splitter": "unified",
        **more,
    }
    return Recipe.from_data(data, where="again.toml", out=out, host=host)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pruner", ["shortgpt", "sleb", "streamline", "llm-drop", "flap", "llm-pruner"])
def test_pruners_take_it(pruner: str, host: PluginHost, tmp_path: Path) -> None:
    folder = first_round("llama", host, tmp_path)
    # Blocks that differ cannot all get one width.
    chosen = {"use": pruner, "width": "per-block"} if pruner == "llm-pruner" else pruner
    recipe = recipe_of(folder, host, tmp_path / "run", pruner=chosen, prune={"fraction": 0.2})
    plan = pipeline.run(recipe, host).plan.plan
    assert len(plan.decode)
    assert logits_of(read_back(tmp_path / "run" / "decode")).isfinite().all()


@pytest.mark.parametrize("pruner", ["reap", "frequency"])
def test_pruners_of_experts_take_it(pruner: str, host: PluginHost, tmp_path: Path) -> None:
    folder = first_round("mixtral", host, tmp_path)
    prune = {"use": pruner, "width": "per-block"}
    recipe = recipe_of(folder, host, tmp_path / "run", pruner=prune, prune={"fraction": 0.1}, splitter="experts")
    assert pipeline.run(recipe, host).plan.plan.decode.shrinks_experts


def test_a_search_with_merges_takes_it(host: PluginHost, tmp_path: Path) -> None:
    folder = first_round("llama", host, tmp_path)
    recipe = recipe_of(folder, host, tmp_path / "run", prune={"blocks": 1})
    assert pipeline.run(recipe, host).plan.plan.decode.blocks_removed == 1


def test_scoring_agrees_with_two_phases(host: PluginHost, tmp_path: Path) -> None:
    from pdtrim_core.api import Item

    model = again("llama", host, tmp_path)
    plan = Plan(decode=Removal([Drop(3), Shrink(1, "mlp", (0,))]))
    item = Item((tuple(range(9)),), ((4, 5, 6),), 0, (1,), "one")
    (staged,) = StagedModel(PrefixCache(model, ExecutionOptions()), plan).loglikelihoods([item])
    logprobs = TwoPhaseModel(model, plan).continuation_logits(item.prompt_of(0), item.choices[0]).log_softmax(-1)
    assert staged[0] == pytest.approx(sum(float(logprobs[at, token]) for at, token in enumerate(item.choices[0])), abs=1e-4)


def test_exports_without_parts_and_prefill_sides_are_refused(host: PluginHost, tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "dense")
    loaded = FolderModel(path=str(source), placement="cpu").open()
    dense = BlockModel(loaded.model, loaded.tokenizer, host.find_blocks(loaded.model, "tiny"), name="tiny")
    export(Checkpoints(), dense, [DropPart(1, "attention")], tmp_path / "parts")
    with pytest.raises(PdtrimError) as told:
        FolderModel(path=str(tmp_path / "parts" / "decode")).open_config()
    assert str(told.value) == (
        f"cannot open the model {tmp_path / 'parts' / 'decode'}: it is an export of pdtrim-core some of whose blocks have no "
        "attention or no MLP, which cannot be pruned again; take the model that was pruned"
    )
    folder = tmp_path / "parts" / "decode"
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pdtrim"]["decode_index"] = {}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(PdtrimError, match="it is the prefill side of a pair that pdtrim-core wrote, which is no whole model"):
        FolderModel(path=str(folder)).open_config()
