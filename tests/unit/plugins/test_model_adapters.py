"""Adapters of PEFT: refused when a model is opened, or merged where that is asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import PdtrimError, Plan, Removal, apply
from pdtrim_core.api import Drop
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources.folder import FolderModel

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
peft = pytest.importorskip("peft")
IDS = torch.arange(12)[None]


def adapted(base: Path) -> Any:
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    return peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A base, an adapter for it alone, and both in one folder."""
    root = tmp_path_factory.mktemp("adapters")
    base, alone, both = root / "base", root / "alone", root / "both"
    save_tiny_model(base)
    adapted(base).save_pretrained(alone)
    shutil.copytree(base, both)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(alone / file, both / file)
    return base, alone, both


def test_both_forms_are_refused_unless_asked_for(folders: tuple[Path, Path, Path]) -> None:
    base, alone, both = folders
    for folder, what, other in (
        (alone, f"is an adapter of PEFT for {base}", "name that model to prune it without the adapter"),
        (
            both,
            "has an adapter of PEFT beside its weights (adapter_config.json)",
            "move adapter_config.json away to prune the model without it",
        ),
    ):
        source = FolderModel(path=str(folder))
        for act in (source.open, source.open_config, source.check_weights, source.block_count, source.files):
            with pytest.raises(PdtrimError) as told:
                act()
            assert str(told.value) == (
                f"model folder {folder} {what}: say [model] merge_adapter = true to prune both as one model, or {other}"
            )


@pytest.mark.parametrize("which", [1, 2], ids=["alone", "beside its base"])
def test_a_merged_model_answers_as_the_adapted_one(which: int, folders: tuple[Path, Path, Path]) -> None:
    source = FolderModel(path=str(folders[which]), merge_adapter=True, placement="cpu")
    assert source.block_count() == 6
    assert source.check_weights()
    assert {file.name for file in source.files()} >= {"model.safetensors", "adapter_model.safetensors"}
    found = source.open()
    with torch.inference_mode():
        expected = adapted(folders[0])(input_ids=IDS).logits
        dense = FolderModel(path=str(folders[0]), placement="cpu").open().model(input_ids=IDS).logits
        made = found.model(input_ids=IDS).logits
    assert torch.allclose(made, expected, atol=1e-4)
    assert not torch.allclose(made, dense, atol=1e-1)
    assert not any("lora" in name for name, _ in found.model.named_parameters())


def test_what_cannot_be_merged_is_refused_in_one_line(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, alone, _ = folders
    with pytest.raises(PdtrimError, match=r"has no adapter of PEFT to merge: leave merge_adapter out$"):
        FolderModel(path=str(base), merge_adapter=True).open()
    with pytest.raises(PdtrimError, match=r"with placement = stream weights stay in their files, where no merged ones are"):
        FolderModel(path=str(alone), merge_adapter=True, placement="stream").open()
    nowhere = shutil.copytree(alone, tmp_path / "nowhere")
    told = json.loads((nowhere / "adapter_config.json").read_text())
    (nowhere / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": None}))
    with pytest.raises(PdtrimError, match=r"its adapter_config.json names no base_model_name_or_path, the model it belongs to$"):
        FolderModel(path=str(nowhere), merge_adapter=True).open()


def test_a_base_is_found_beside_the_adapter(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    base, alone, _ = folders
    moved = shutil.copytree(alone, tmp_path / "moved")
    shutil.copytree(base, moved / "its-base")
    told = json.loads((moved / "adapter_config.json").read_text())
    (moved / "adapter_config.json").write_text(json.dumps({**told, "base_model_name_or_path": "its-base"}))
    assert FolderModel(path=str(moved), merge_adapter=True).block_count() == 6


def test_a_loaded_model_with_an_adapter_is_refused(folders: tuple[Path, Path, Path]) -> None:
    from transformers import AutoModelForCausalLM

    plan = Plan.unified(Removal([Drop(2)]))
    model = adapted(folders[0])
    inside = AutoModelForCausalLM.from_pretrained(folders[0])
    inside.load_adapter(str(folders[1]))
    for one in (model, inside):
        with pytest.raises(PdtrimError) as told:
            apply(plan, one)
        assert str(told.value) == (
            "apply takes a model without adapters of PEFT, since a plan cuts the weights themselves: merge them first, with "
            "model.merge_and_unload() of a PeftModel"
        )
    assert apply(plan, model.merge_and_unload()).plan == plan
