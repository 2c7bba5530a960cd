"""Weights that stay in their files: the same numbers as in memory, one block at a time."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import BlockModel, PdtrimError
from pdtrim_core.model import mapped_weights
from pdtrim_core.model.mapped_weights import CAN_BE_TOLD, MappedWeights
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.testing import tiny_transformers
from pdtrim_core.testing.contracts.small_run import TinyModel
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources import FolderModel
from tests.pretend_accelerator import PretendAccelerator

if TYPE_CHECKING:
    from pdtrim_core import PluginHost


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return save_tiny_model(tmp_path / "tiny")


def opened(folder: Path, host: PluginHost, placement: str = "stream", **options: Any) -> BlockModel:
    return open_model(FolderModel(path=str(folder), placement=placement, **options), host)


def resident(model: BlockModel) -> int:
    """Kilobytes of files that are in the memory of this process, of those that the model is in."""
    found, here = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if "-" in line.split(" ", 1)[0]:
            here = any(line.endswith(str(file)) for file in model.files if file.suffix == ".safetensors")
        elif here and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


def test_weights_on_the_disk_are_those_in_memory(folder: Path, host: PluginHost) -> None:
    ordinary, streamed = opened(folder, host, "cpu"), opened(folder, host)
    assert streamed.streams
    assert not ordinary.streams
    assert streamed.fingerprint == ordinary.fingerprint
    assert streamed.exact_fingerprint == ordinary.exact_fingerprint
    assert streamed.sizes == ordinary.sizes
    for (name, one), (same, other) in zip(ordinary.model.named_parameters(), streamed.model.named_parameters(), strict=True):
        assert name == same
        assert torch.equal(one, other)


def test_several_files_are_mapped(tmp_path: Path, host: PluginHost) -> None:
    folder = save_tiny_model(tmp_path / "whole")
    tiny_transformers("llama").save_pretrained(tmp_path / "parts", max_shard_size="40KB")
    assert len([*(tmp_path / "parts").glob("*.safetensors")]) > 1
    for file in folder.iterdir():
        if not (tmp_path / "parts" / file.name).exists() and file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / "parts" / file.name)
    assert opened(tmp_path / "parts", host).streams


def test_bytes_are_counted_once_for_a_block_that_is_run_again(folder: Path, host: PluginHost) -> None:
    model = opened(folder, host)
    assert model.on_disk is not None
    before, size = model.on_disk.bytes_read, sum(weight.nbytes for weight in model.blocks[0].parameters())
    with torch.inference_mode():
        recording = model.record(torch.tensor([[1, 2, 3]]))
        for block, read in ((0, 1), (0, 1), (1, 2), (0, 3)):
            model.run(block, recording.hidden_BTD, recording.calls)
            assert model.on_disk.bytes_read - before == read * size
        list(model.logits(recording.hidden_BTD[0]))
    head = model.model.get_output_embeddings().weight.nbytes
    assert model.on_disk.bytes_read - before == 3 * size + head


@pytest.mark.skipif(not (CAN_BE_TOLD and Path("/proc/self/smaps").exists()), reason="only Linux tells what is in memory")
def test_only_the_block_that_runs_is_in_memory(tmp_path: Path, host: PluginHost) -> None:
    model = tiny_transformers("llama", hidden_size=256, intermediate_size=2048)
    folder = save_tiny_model(tmp_path / "tiny")
    model.save_pretrained(folder)
    streamed = opened(folder, host)
    streamed.let_go()
    assert resident(streamed) == 0
    with torch.inference_mode():
        recording = streamed.record(torch.tensor([[1, 2, 3]]))
        hidden_BTD = recording.hidden_BTD
        size = sum(weight.nbytes for weight in streamed.blocks[0].parameters()) / 1024
        for block in range(streamed.block_count):
            hidden_BTD = streamed.run(block, hidden_BTD, recording.calls)
            assert size / 2 < resident(streamed) < 1.5 * size
    streamed.let_go()
    assert resident(streamed) == 0
    expected = model(input_ids=torch.tensor([[1, 2, 3]])).logits[0]
    with torch.inference_mode():
        assert torch.equal(torch.cat([*streamed.logits(hidden_BTD[0])]), expected.detach())


def test_a_system_that_takes_no_advice_gives_the_same(folder: Path, host: PluginHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped_weights, "CAN_BE_TOLD", False)
    assert opened(folder, host).fingerprint == opened(folder, host, "cpu").fingerprint


def test_a_copy_of_a_tensor_is_not_in_a_file(folder: Path) -> None:
    mapped = MappedWeights([folder / "model.safetensors"])
    tensor = mapped.tensors["model.embed_tokens.weight"]
    assert mapped.has(tensor)
    assert mapped.has(tensor[3:])
    assert not mapped.has(tensor.clone())
    assert not mapped.has(torch.empty(2, 2, device="meta"))


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt-neox", "opt", "qwen3"])
def test_an_accelerator_has_what_is_beside_the_blocks_and_the_block_that_runs(
    family: str, tmp_path: Path, host: PluginHost
) -> None:
    folder, accelerator = save_tiny_model(tmp_path / "tiny", family), PretendAccelerator()
    with accelerator, torch.inference_mode():
        streamed = opened(folder, host)
        model = opened(folder, host, "cpu").model
        expected = accelerator.put(model, streamed.layout.blocks)(input_ids=torch.tensor([[1, 2, 3]], device="lazy")).logits[0]
        recording = streamed.record(torch.tensor([[1, 2, 3]], device="lazy"))
        hidden_BTD = recording.hidden_BTD
        for block in range(streamed.block_count):
            hidden_BTD = streamed.run(block, hidden_BTD, recording.calls)
            assert there_of(streamed) == {id(weight) for weight in streamed.blocks[block].parameters()}
        found = torch.cat([*streamed.logits(hidden_BTD[0])])
        assert not there_of(streamed)
        assert torch.equal(found.cpu(), expected.float().cpu())
    of_blocks = {id(weight) for block in streamed.blocks for weight in block.parameters()}
    for weight in streamed.model.parameters():
        assert weight.device.type == ("cpu" if id(weight) in of_blocks else "lazy")
    tied = streamed.model.get_output_embeddings().weight is streamed.model.get_input_embeddings().weight
    assert tied == bool(streamed.config.tie_word_embeddings)


def there_of(model: BlockModel) -> set[int]:
    """The weights of blocks that are on an accelerator."""
    assert model.on_disk is not None
    assert model.on_disk._brought is not None
    return set(model.on_disk._brought._there)


def test_another_number_format_than_that_of_the_files_is_refused(folder: Path, host: PluginHost) -> None:
    with pytest.raises(
        PdtrimError,
        match=r"tiny: with placement = stream weights stay as they are in their files, in float32: say dtype = auto, or convert "
        r"the checkpoint to bfloat16$",
    ):
        opened(folder, host, dtype="bfloat16")


def test_the_number_format_of_the_files_is_computed_with(tmp_path: Path, host: PluginHost) -> None:
    folder = save_tiny_model(tmp_path / "tiny")
    tiny_transformers("llama").to(torch.bfloat16).save_pretrained(folder)
    assert opened(folder, host).dtype == torch.bfloat16
    assert opened(folder, host, dtype="bfloat16").dtype == torch.bfloat16


def test_weights_that_are_put_together_from_several_tensors_are_refused(tmp_path: Path, host: PluginHost) -> None:
    folder = save_tiny_model(tmp_path / "experts", "mixtral")
    with pytest.raises(
        PdtrimError, match=r"experts: model\.layers\.0\.\S+ is put together from several tensors .*: choose another placement"
    ):
        opened(folder, host)


def test_weights_in_other_files_than_safetensors_are_refused(folder: Path, host: PluginHost) -> None:
    (folder / "model.safetensors").unlink()
    torch.save(tiny_transformers("llama").state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(PdtrimError, match=r"tiny: its weights are in no safetensors files, .*: convert it, or choose another"):
        opened(folder, host)


def test_a_weight_that_is_not_finite_is_named(folder: Path, host: PluginHost) -> None:
    model = tiny_transformers("llama")
    with torch.no_grad():
        model.model.layers[4].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(folder)
    with pytest.raises(PdtrimError, match=r"the weight model\.layers\.4\.mlp\.up_proj\.weight holds a NaN"):
        opened(folder, host)


def test_a_source_that_has_weights_in_memory_alone_says_so(tmp_path: Path) -> None:
    assert not TinyModel.streams
