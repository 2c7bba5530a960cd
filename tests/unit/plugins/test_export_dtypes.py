"""An export keeps the number format of the checkpoint, whatever it was measured in, unless it is told otherwise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdtrim_core import Drop, Merge, PdtrimError, PluginHost
from pdtrim_core.api import BlockModel, Exporter
from pdtrim_core.pipeline.export import remarks_on
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.models import save_tiny_model, tiny_transformers
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.vllm import Vllm
from pdtrim_plugins.model_sources import FolderModel, GgufModel
from tests.unit.plugins.exported import export, read_back
from tests.unit.plugins.gguf_files import write_gguf

pytestmark = pytest.mark.usefixtures("own_cache")

NORMS = "layernorm.weight", "norm.weight"


def opened(folder: Path, host: PluginHost, **options: Any) -> BlockModel:
    return open_model(FolderModel(path=str(folder), placement="cpu", **options), host)


def formats_in(folder: Path) -> dict[str, torch.dtype]:
    return {name: tensor.dtype for file in folder.glob("*.safetensors") for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("shard", ["10GB", "30KB"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_coarse_checkpoint_measured_in_float32_is_exported_as_it_was(
    dtype: torch.dtype, shard: str, host: PluginHost, tmp_path: Path
) -> None:
    save_tiny_model(tmp_path / "model", dtype=dtype)
    if shard != "10GB":
        (tmp_path / "model" / "model.safetensors").unlink()
        tiny_transformers("llama", dtype=dtype).save_pretrained(tmp_path / "model", max_shard_size=shard)
        assert len(list((tmp_path / "model").glob("model-*.safetensors"))) > 1
    model = opened(tmp_path / "model", host)
    assert (model.dtype, model.stored_dtype()) == (torch.float32, dtype)
    export(Checkpoints(), model, [Drop(1), Merge(3, 2)], tmp_path)
    for folder in ("decode", "unified"):
        assert set(formats_in(tmp_path / folder).values()) == {dtype}
        assert json.loads((tmp_path / folder / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
        told = f"weights in {str(dtype).removeprefix('torch.')}, as in the source; measured in float32"
        assert told in (tmp_path / folder / "README.md").read_text()
    loaded = read_back(tmp_path / "decode", dtype="auto")
    source = read_back(tmp_path / "model", dtype="auto")
    # Not a bit is lost of what was not trained: blocks 0 and 4 are 0 and 2 now.
    for number, before in ((0, 0), (2, 4)):
        assert torch.equal(loaded.model.layers[number].mlp.up_proj.weight, source.model.layers[before].mlp.up_proj.weight)
    assert torch.equal(loaded.lm_head.weight, source.lm_head.weight)


def test_a_pair_for_vllm_keeps_it_in_both_stages(host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    export(Vllm(), opened(tmp_path / "model", host), [Drop(1), Merge(3, 2)], tmp_path)
    for folder in ("decode", "prefill"):
        assert set(formats_in(tmp_path / folder).values()) == {torch.bfloat16}
        assert "weights in bfloat16, as in the source; measured in float32" in (tmp_path / folder / "README.md").read_text()


def test_a_gguf_file_takes_the_format_of_the_source_for_its_matrices(host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    model = opened(tmp_path / "model", host)
    export(Gguf(pre="gpt-2"), model, [Drop(1)], tmp_path)
    assert (tmp_path / "gguf" / "model-BF16.gguf").is_file()
    assert "matrices in bfloat16, as in the source, vectors in float32" in (tmp_path / "gguf" / "README.md").read_text()


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_another_format_is_written_where_it_is_asked_for(dtype: Any, host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    export(Checkpoints(dtype=dtype), opened(tmp_path / "model", host), [Drop(1)], tmp_path)
    assert set(formats_in(tmp_path / "decode").values()) == {getattr(torch, dtype)}


def test_the_format_that_the_model_was_asked_for_is_that_of_its_exports(host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model")
    export(Checkpoints(), opened(tmp_path / "model", host, dtype="bfloat16"), [Drop(1)], tmp_path)
    assert set(formats_in(tmp_path / "decode").values()) == {torch.bfloat16}


@pytest.mark.parametrize("exporter", [Checkpoints(), Vllm()])
def test_tensors_with_a_format_of_their_own_keep_it(exporter: Exporter, host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    file = tmp_path / "model" / "model.safetensors"
    tensors = {name: tensor.float() * 1.001 if name.endswith(NORMS) else tensor for name, tensor in load_file(file).items()}
    save_file(tensors, file, {"format": "pt"})
    model = opened(tmp_path / "model", host)
    export(exporter, model, [Drop(1), Merge(3, 2)], tmp_path)
    for folder in (path for path in (tmp_path / "decode", tmp_path / "prefill") if path.exists()):
        found = formats_in(folder)
        assert {name for name, dtype in found.items() if dtype == torch.float32} == {n for n in found if n.endswith(NORMS)}
        assert set(found.values()) == {torch.float32, torch.bfloat16}
    exact = load_file(tmp_path / "decode" / "model.safetensors")["model.norm.weight"]
    assert torch.equal(exact, tensors["model.norm.weight"])
    assert exporter.remark(model) == (
        "weights in bfloat16, as in the source; some tensors in float32, as there; measured in float32"
    )


def test_a_tensor_whose_blocks_differ_takes_the_format_that_loses_nothing(host: PluginHost, tmp_path: Path) -> None:
    save_tiny_model(tmp_path / "model", dtype=torch.bfloat16)
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.2.mlp.up_proj.weight"] = tensors["model.layers.2.mlp.up_proj.weight"].float()
    save_file(tensors, file, {"format": "pt"})
    export(Checkpoints(), opened(tmp_path / "model", host), [Drop(1)], tmp_path)
    found = formats_in(tmp_path / "decode")
    assert {name for name, dtype in found.items() if dtype == torch.float32} == {
        f"model.layers.{number}.mlp.up_proj.weight" for number in range(5)
    }


def test_a_gguf_source_stays_in_float32(host: PluginHost, tmp_path: Path) -> None:
    model = open_model(GgufModel(path=write_gguf(tmp_path / "tiny.gguf"), placement="cpu"), host)
    export(Checkpoints(), model, [Drop(1)], tmp_path)
    assert set(formats_in(tmp_path / "decode").values()) == {torch.float32}


def test_exporters_say_which_format_they_write_and_why(host: PluginHost) -> None:
    model = tiny_llama()
    assert list(remarks_on([Checkpoints(), Vllm(dtype="float16"), Gguf(dtype="q8_0")], host, model)) == [
        "checkpoints: weights in float32, the format that the model was in",
        "vllm: weights in float16, as the option dtype says; measured in float32",
        "gguf: matrices in q8_0, as the option dtype says, vectors in float32; measured in float32",
    ]


def test_a_number_that_float16_cannot_hold_is_not_written_as_infinity(tmp_path: Path) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.model.model.layers[4].mlp.up_proj.weight[0, 0] = 70_000.0
    with pytest.raises(
        PdtrimError, match=r"the tensor model\.layers\.3\.mlp\.up_proj\.weight has numbers that float16 cannot hold"
    ):
        export(Checkpoints(dtype="float16"), model, [Drop(1)], tmp_path)
    assert not (tmp_path / "decode").exists()
    export(Checkpoints(dtype="bfloat16"), model, [Drop(1)], tmp_path)
