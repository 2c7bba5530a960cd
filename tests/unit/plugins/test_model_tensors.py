"""A checkpoint is opened only if its tensors are those of its config: missing ones would be random numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from pdtrim_core import PluginHost
from pdtrim_core.api import Drop, ModelSource, PdtrimError
from pdtrim_core.pipeline.budget import budget_of
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import FAMILIES, save_tiny_model, tiny_config, tiny_transformers
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.model_sources import FolderModel, GgufModel
from pdtrim_plugins.model_sources.gguf_tensors import check_table
from tests.unit.plugins.exported import export
from tests.unit.plugins.gguf_files import write_gguf, write_gguf_of_experts

pytestmark = pytest.mark.usefixtures("own_cache")

ADVICE = "; download the checkpoint again, or take the config.json that belongs to these weights"
NORM = "model.norm.weight"
BIN = "pytorch_model.bin"
Change = Callable[[dict[str, Tensor]], object]


def changed(folder: Path, change: Change, family: str = "llama", **settings: Any) -> FolderModel:
    """Return a checkpoint whose tensors were changed after it was written."""
    from safetensors.torch import load_file, save_file

    save_tiny_model(folder, family, **settings)
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return FolderModel(path=str(folder), placement="cpu")


def without(*names: str) -> Change:
    return lambda tensors: [tensors.pop(name) for name in names]


def with_ones(**shapes: tuple[int, ...]) -> Change:
    return lambda tensors: tensors.update({name: torch.ones(shape) for name, shape in shapes.items()})


def problem_of(source: ModelSource) -> str:
    """Return why a source refuses a checkpoint; it says the same with and without its weights read."""
    told = []
    for look in (source.check_weights, source.open):
        with pytest.raises(PdtrimError) as caught:
            look()
        told.append(str(caught.value))
    assert told[0] == told[1]
    prefix, _, problem = told[0].replace(ADVICE, "").partition(f"{source.path}: ")
    assert prefix == "cannot open the model "
    assert "\n" not in problem
    assert "report" not in problem
    return problem


@pytest.mark.parametrize("stored", ["one file", "shards", "bin", "tied"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_whole_checkpoint_of_every_family_raises_no_alarm(family: str, stored: str, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"tie_word_embeddings": True} if stored == "tied" else {}
    save_tiny_model(tmp_path, family, **settings)
    if stored == "shards":
        (tmp_path / "model.safetensors").unlink()
        tiny_transformers(family).save_pretrained(tmp_path, max_shard_size="40KB")
        assert (tmp_path / "model.safetensors.index.json").is_file()
    if stored == "bin":
        (tmp_path / "model.safetensors").unlink()
        torch.save(tiny_transformers(family).state_dict(), tmp_path / "pytorch_model.bin")
    source = FolderModel(path=str(tmp_path), placement="cpu")
    source.check_weights()
    wanted = tiny_transformers(family, **settings).state_dict()
    found = source.open().model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.items())


@pytest.mark.parametrize("family", ["gemma3", "gpt-neox", "llama", "opt"])
def test_names_without_their_first_part_raise_no_alarm(family: str, tmp_path: Path) -> None:
    wanted = tiny_transformers(family, tie_word_embeddings=True)
    prefix = f"{wanted.base_model_prefix}."

    def shorten(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    source = changed(tmp_path, shorten, family, tie_word_embeddings=True)
    source.check_weights()
    found = source.open().model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in wanted.state_dict().items())


def test_a_head_that_is_stored_though_it_is_tied_raises_no_alarm(tmp_path: Path) -> None:
    def store(tensors: dict[str, Tensor]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    source = changed(tmp_path, store, tie_word_embeddings=True)
    source.check_weights()
    source.open()


def test_a_model_with_a_part_for_pictures_raises_no_alarm(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, Gemma3Config

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    pictures = {**sizes, "image_size": 28, "patch_size": 14}
    config = Gemma3Config(text_config=tiny_config("gemma3").to_dict(), vision_config=pictures, mm_tokens_per_image=4)
    save_tiny_model(tmp_path, "gemma3")
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    source = FolderModel(path=str(tmp_path), placement="cpu")
    source.check_weights()
    assert source.open().model.config.model_type == "gemma3"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_single_tensor_of_a_block_and_outside_is_missed(family: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    save_tiny_model(tmp_path, family)
    names = [name for name in load_file(tmp_path / "model.safetensors") if ".3." in name or "layers" not in name]
    assert len(names) > 5
    for name in names:
        source = changed(tmp_path, without(name), family)
        with pytest.raises(PdtrimError, match=r"missing|is .* and by its config"):
            source.check_weights()


def test_a_block_without_its_tensors_is_refused_by_name(tmp_path: Path) -> None:
    block = [f"model.layers.3.{part}" for part in ("input_layernorm.weight", "mlp.down_proj.weight", "mlp.gate_proj.weight")]
    source = changed(tmp_path, without(*block))
    assert problem_of(source) == f"{', '.join(block)} are missing"


def test_many_missing_tensors_are_counted(tmp_path: Path) -> None:
    source = changed(tmp_path, lambda tensors: [tensors.pop(name) for name in list(tensors) if ".4." in name])
    assert problem_of(source).endswith("model.layers.4.mlp.up_proj.weight and 5 more are missing")


def test_a_head_is_missed_unless_it_is_tied(tmp_path: Path) -> None:
    assert problem_of(changed(tmp_path / "a", without("lm_head.weight"))) == "lm_head.weight is missing"
    save_tiny_model(tmp_path / "b", tie_word_embeddings=True)
    FolderModel(path=str(tmp_path / "b"), placement="cpu").open()


def test_a_missing_expert_is_named_and_so_is_one_of_another_shape(tmp_path: Path) -> None:
    expert = "model.layers.2.block_sparse_moe.experts.1.w3.weight"
    assert problem_of(changed(tmp_path / "a", without(expert), "mixtral")) == f"{expert} is missing"
    other = changed(tmp_path / "b", with_ones(**{expert: (5, 32)}), "mixtral")
    assert problem_of(other) == f"{expert} is 5x32 and by its config 48x32"


def test_tensors_of_another_shape_are_named_with_both(tmp_path: Path) -> None:
    source = changed(tmp_path, with_ones(**{"model.norm.weight": (31,), "model.layers.0.mlp.up_proj.weight": (40, 32)}))
    assert problem_of(source) == (
        "model.layers.0.mlp.up_proj.weight is 40x32 and by its config 48x32, model.norm.weight is 31 and by its config 32"
    )


def with_blocks(count: int, path: Path) -> FolderModel:
    """A model of six blocks in `path` whose config tells of `count`."""
    save_tiny_model(path)
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
    return FolderModel(path=str(path), placement="cpu")


def test_blocks_beyond_those_of_the_config_are_refused(tmp_path: Path) -> None:
    problem = problem_of(with_blocks(4, tmp_path))
    assert problem.startswith("by its config there are no model.layers.4.input_layernorm.weight, ")
    assert problem.endswith(f" and {9 * 2 - 4} more")


@pytest.mark.parametrize("count", [0, -1])
def test_a_config_without_blocks_is_refused(count: int, tmp_path: Path) -> None:
    problem = problem_of(with_blocks(count, tmp_path))
    assert problem == f"its config.json has num_hidden_layers = {count}, and one is the least"


@pytest.mark.parametrize(
    ("family", "name", "shape"),
    [
        ("llama", "model.layers.1.self_attn.q_proj.bias", (32,)),
        ("llama", "model.layers.1.self_attn.q_norm.weight", (8,)),
        ("llama", "model.norm.bias", (32,)),
        ("llama", "lm_head.bias", (260,)),
        ("llama", "model.embed_positions.weight", (512, 32)),
        ("gpt-neox", "gpt_neox.layers.0.attention.q_norm.weight", (8,)),
        ("opt", "model.decoder.project_in.weight", (32, 32)),
    ],
)
def test_a_tensor_of_the_decoder_that_the_config_has_no_place_for_is_refused(
    family: str, name: str, shape: tuple[int, ...], tmp_path: Path
) -> None:
    source = changed(tmp_path, with_ones(**{name: shape}), family)
    assert problem_of(source) == f"by its config there is no {name}"


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("llama", "model.layers.0.self_attn.rotary_emb.inv_freq"),
        ("llama", "model.rotary_emb.inv_freq"),
        ("gpt-neox", "gpt_neox.layers.2.attention.masked_bias"),
        ("gpt-neox", "gpt_neox.layers.2.attention.bias"),
        ("opt", "model.decoder.position_ids"),
    ],
)
def test_tables_that_are_computed_now_may_lie_in_old_checkpoints(family: str, name: str, tmp_path: Path) -> None:
    source = changed(tmp_path, with_ones(**{name: (1,)}), family)
    source.check_weights()
    source.open()


@pytest.mark.parametrize(
    "name", ["vision_tower.patches.weight", "model.vision_tower.layers.0.norm.weight", "v_head.summary.bias"]
)
def test_parts_beside_the_language_model_are_left_out_with_a_note(name: str, tmp_path: Path) -> None:
    source = changed(tmp_path, with_ones(**{name: (3,)}))
    source.check_weights()
    with pytest.warns(UserWarning, match=rf": {re.escape(name)} is not read: the architecture of its config has no place for it"):
        source.open()


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    tiny_transformers("llama").save_pretrained(tmp_path, max_shard_size="40KB")
    shard = next(tmp_path.glob("model-00002-of-*"))
    shard.unlink()
    source = FolderModel(path=str(tmp_path), placement="cpu")
    assert problem_of(source) == f"{shard.name} is missing, which its model.safetensors.index.json names"


def test_a_file_that_ends_early_is_named(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(PdtrimError) as caught:
        FolderModel(path=str(tmp_path)).check_weights()
    assert "(in model.safetensors)" in str(caught.value)


def sharded(folder: Path) -> FolderModel:
    """Return a checkpoint of several files and their index."""
    save_tiny_model(folder)
    (folder / "model.safetensors").unlink()
    tiny_transformers("llama").save_pretrained(folder, max_shard_size="40KB")
    return FolderModel(path=str(folder), placement="cpu")


def in_two_files(folder: Path, stored: str, other: Tensor | None) -> FolderModel:
    """Return a checkpoint of two files that both have the last norm: with the same numbers, or with others in the second."""
    from safetensors.torch import save_file

    source = sharded(folder)
    for file in folder.glob("model*"):
        file.unlink()
    tensors = {key: tensor.clone() for key, tensor in tiny_transformers("llama").state_dict().items()}
    first = {key: tensor for key, tensor in tensors.items() if key != "lm_head.weight"}
    norm = tensors[NORM] if other is None else other
    second = {"lm_head.weight": tensors["lm_head.weight"], NORM: norm}
    whole = "model.safetensors" if stored == "safetensors" else BIN
    names = [f"{whole.partition('.')[0]}-{number}.{stored}" for number in (1, 2)]
    for name, part in zip(names, (first, second), strict=True):
        if stored == "bin":
            torch.save(part, folder / name)
        else:
            save_file(part, folder / name, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {**dict.fromkeys(first, names[0]), "lm_head.weight": names[1]}}
    (folder / f"{whole}.index.json").write_text(json.dumps(index))
    return source


@pytest.mark.parametrize("other", [torch.full((32,), 7.0), torch.ones(32, dtype=torch.float16), torch.ones(31)])
@pytest.mark.parametrize("stored", ["safetensors", "bin"])
def test_a_tensor_in_two_files_with_other_numbers_is_refused(stored: str, other: Tensor, tmp_path: Path) -> None:
    whole = "model" if stored == "safetensors" else "pytorch_model"
    assert problem_of(in_two_files(tmp_path, stored, other)) == (
        f"{NORM} is in {whole}-1.{stored} and, with other numbers, in {whole}-2.{stored}"
    )


@pytest.mark.parametrize("stored", ["safetensors", "bin"])
def test_a_tensor_in_two_files_with_the_same_numbers_raises_no_alarm(stored: str, tmp_path: Path) -> None:
    source = in_two_files(tmp_path, stored, None)
    source.check_weights()
    source.open()


def test_a_tensor_that_a_gguf_file_has_twice_is_refused(tmp_path: Path) -> None:
    file = Path(write_gguf(tmp_path / "tiny.gguf"))
    file.write_bytes(file.read_bytes().replace(b"blk.1.attn_norm.weight", b"blk.0.attn_norm.weight"))
    assert problem_of(GgufModel(path=str(file))) == "Found duplicated tensor with name blk.0.attn_norm.weight"


ONLY = (
    "weights are read from model.safetensors or pytorch_model.bin, or from the files that model.safetensors.index.json or "
    "pytorch_model.bin.index.json names, and it has only "
)


@pytest.mark.parametrize("file", ["consolidated.safetensors", "model.fp16.safetensors", "weights.pt", "tiny.gguf", "tf_model.h5"])
def test_weights_in_a_file_that_is_not_read_are_told_by_its_name(file: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / file)
    assert problem_of(FolderModel(path=str(tmp_path), placement="cpu")) == f"{ONLY}{file}"


def test_shards_without_their_index_are_refused(tmp_path: Path) -> None:
    source = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").unlink()
    problem = problem_of(source)
    assert problem.startswith(f"{ONLY}model-00001-of-")
    assert problem.endswith(" more")


TABLE = "its weight_map is no table of tensors and the files they are in"


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"metadata": {}, "weight_map": {}}, "its weight_map names no tensor"),
        ({"weight_map": {}}, "its weight_map names no tensor"),
        ({"metadata": {}}, TABLE),
        ([], TABLE),
        ({"metadata": {}, "weight_map": ["a"]}, TABLE),
        ({"metadata": {}, "weight_map": {"a": 3}}, TABLE),
        ({"metadata": 3, "weight_map": {"a": "b"}}, 'it has no metadata, which transformers asks for, so add "metadata": {}'),
        ({"weight_map": {"a": "b"}}, 'it has no metadata, which transformers asks for, so add "metadata": {}'),
    ],
)
def test_an_index_that_cannot_be_used_is_named(content: Any, expected: str, tmp_path: Path) -> None:
    source = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    assert problem_of(source) == f"{expected} (in model.safetensors.index.json)"


@pytest.mark.parametrize("depth", [100, 200_000])
def test_an_index_that_is_no_json_is_named(depth: int, tmp_path: Path) -> None:
    source = sharded(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text("[" * depth)
    assert problem_of(source).endswith("(in model.safetensors.index.json)")


@pytest.mark.parametrize("content", ["nothing", "wrapped", "no tensor"])
def test_a_file_without_any_tensor_lacks_them_all(content: str, tmp_path: Path) -> None:
    source = changed(tmp_path, lambda tensors: tensors.clear())
    if content != "nothing":
        (tmp_path / "model.safetensors").unlink()
        of_file = {"state_dict": tiny_transformers("llama").state_dict()} if content == "wrapped" else {"epoch": 3}
        torch.save(of_file, tmp_path / "pytorch_model.bin")
    problem = problem_of(source)
    assert problem.startswith("lm_head.weight, model.embed_tokens.weight, ")
    assert problem.endswith(" more are missing")


def test_a_file_of_weights_that_a_config_names_is_the_one_that_is_read(tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "transformers_weights": "other.safetensors"}))
    source = FolderModel(path=str(tmp_path), placement="cpu")
    assert problem_of(source) == "other.safetensors is missing, which its config.json names"
    (tmp_path / "model.safetensors").rename(tmp_path / "other.safetensors")
    source.check_weights()
    assert torch.equal(source.open().model.lm_head.weight, tiny_transformers("llama").lm_head.weight)


@pytest.mark.parametrize("stored", ["one file", "bin"])
@pytest.mark.parametrize(
    ("dtype", "told"),
    [
        (torch.int8, ("I8", "int8")),
        (torch.uint8, ("U8", "uint8")),
        (torch.int32, ("I32", "int32")),
        (torch.bool, ("BOOL", "bool")),
        (torch.float8_e4m3fn, ("F8_E4M3", "float8_e4m3fn")),
        (torch.float8_e5m2, ("F8_E5M2", "float8_e5m2")),
    ],
)
def test_numbers_that_are_no_weights_without_their_scales_are_refused(
    dtype: torch.dtype, told: tuple[str, str], stored: str, tmp_path: Path
) -> None:
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.2.input_layernorm.weight"]
    source = changed(tmp_path, lambda tensors: tensors.update({name: tensors[name].to(dtype) for name in names}))
    if stored == "bin":
        (tmp_path / "model.safetensors").unlink()
        tensors = tiny_transformers("llama").state_dict()
        torch.save({key: tensor.to(dtype) if key in names else tensor for key, tensor in tensors.items()}, tmp_path / BIN)
    assert problem_of(source) == (
        f"{' '.join(names).replace(' ', ', ')} are stored as {told[stored == 'bin']}, and its config has no quantization_config "
        "that says what these numbers mean; take the checkpoint in floating-point numbers that it was made from"
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_weights_in_any_floating_point_numbers_raise_no_alarm(dtype: torch.dtype, tmp_path: Path) -> None:
    source = changed(tmp_path, lambda tensors: tensors.update({key: tensor.to(dtype) for key, tensor in tensors.items()}))
    source.check_weights()
    source.open()


def test_whole_numbers_beside_the_language_model_raise_no_alarm(tmp_path: Path) -> None:
    extra = {"vision_tower.steps": torch.tensor([3]), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.tensor([3])}
    source = changed(tmp_path, lambda tensors: tensors.update(extra))
    source.check_weights()
    with pytest.warns(UserWarning, match=r"vision_tower\.steps is not read"):
        source.open()


@pytest.mark.parametrize("damage", ["gone", "no json"])
def test_a_checkpoint_whose_tokenizer_cannot_be_read_is_refused_without_reading_weights(damage: str, tmp_path: Path) -> None:
    save_tiny_model(tmp_path)
    for file in tmp_path.glob("tokenizer*"):
        if damage == "gone":
            file.unlink()
        else:
            file.write_text("{")
    assert problem_of(FolderModel(path=str(tmp_path), placement="cpu"))


def test_a_budget_is_not_told_of_a_checkpoint_that_a_run_refuses(host: PluginHost, tmp_path: Path) -> None:
    changed(tmp_path, without("model.layers.3.mlp.up_proj.weight"))
    recipe = Recipe.from_data({"model": {"path": str(tmp_path)}, "prune": {"blocks": 1}}, where="r.toml", host=host)
    with pytest.raises(PdtrimError, match=r"model\.layers\.3\.mlp\.up_proj\.weight is missing"):
        budget_of(recipe, host)


def test_a_whole_gguf_file_raises_no_alarm(tmp_path: Path) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf"), placement="cpu")
    source.check_weights()
    source.open()


def test_a_gguf_file_without_its_head_ties_it(tmp_path: Path) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", leave_out=["output.weight"]), placement="cpu")
    source.check_weights()
    model = source.open().model
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("name", ["blk.3.ffn_up.weight", "blk.0.attn_norm.weight", "token_embd.weight", "output_norm.weight"])
def test_a_tensor_that_a_gguf_file_lacks_is_named(name: str, tmp_path: Path) -> None:
    assert problem_of(GgufModel(path=write_gguf(tmp_path / "tiny.gguf", leave_out=[name]))) == f"{name} is missing"


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("blk.3.ffn_up.weight", (40, 32), "48x32"),
        ("blk.4.ffn_up.weight", (32, 48), "48x32"),
        ("blk.2.attn_q.weight", (16, 64), "32x32"),
        ("blk.2.attn_k.weight", (32, 16), "16x32"),
        ("blk.2.attn_q.weight", (1024,), "32x32"),
        ("blk.2.attn_q.weight", (6, 32), "32x32"),
        ("blk.1.attn_norm.weight", (32, 1), "32"),
        ("token_embd.weight", (32, 260), "260x32"),
    ],
)
def test_a_tensor_of_another_shape_in_a_gguf_file_is_named(
    name: str, shape: tuple[int, ...], expected: str, tmp_path: Path
) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", leave_out=[name], more={name: shape}))
    assert problem_of(source) == f"{name} is {'x'.join(map(str, shape))} and by its config {expected}"


@pytest.mark.parametrize("name", ["blk.6.ffn_up.weight", "blk.2.attn_q.bias"])
def test_a_tensor_too_many_in_a_gguf_file_is_named(name: str, tmp_path: Path) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", more={name: (48, 32)}))
    assert problem_of(source) == f"by its config there is no {name}"


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (["model"], "kind of tokenizer (tokenizer.ggml.model)"),
        (["tokens"], "vocabulary (tokenizer.ggml.tokens)"),
        (["merges"], "merges (tokenizer.ggml.merges or tokenizer.ggml.scores)"),
        (
            ["tokens", "merges"],
            "vocabulary (tokenizer.ggml.tokens), no merges (tokenizer.ggml.merges or tokenizer.ggml.scores)",
        ),
    ],
)
def test_a_gguf_file_that_lacks_what_its_tokenizer_is_made_from_is_refused(without: list[str], told: str, tmp_path: Path) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", without=[f"tokenizer.ggml.{table}" for table in without]))
    assert problem_of(source) == (
        f"it has no {told}, without which there is no tokenizer; take the checkpoint that the file was made from, or convert "
        "that again"
    )


def test_a_file_that_was_exported_with_a_tokenizer_of_bytes_alone_is_refused(host: PluginHost, tmp_path: Path) -> None:
    model = open_model(FolderModel(path=str(save_tiny_model(tmp_path / "tiny")), placement="cpu"), host)
    export(Gguf(pre="gpt-2"), model, [Drop(1)], tmp_path)
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    assert problem_of(GgufModel(path=str(file))).startswith("it has no merges (tokenizer.ggml.merges or tokenizer.ggml.scores), ")


@pytest.mark.parametrize(
    ("tensor", "values", "told"),
    [
        ("rope_freqs.weight", {}, "rope_freqs.weight"),
        ("rope_factors_long.weight", {}, "rope_factors_long.weight"),
        (None, {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0}, "llama.rope.scaling.type"),
        (None, {"llama.rope.scaling.type": "linear"}, "llama.rope.scaling.type"),
        (None, {"llama.rope.scaling.factor": 2.0}, "llama.rope.scaling.factor"),
        (None, {"llama.rope.scale_linear": 2.0}, "llama.rope.scale_linear"),
    ],
)
def test_a_gguf_file_with_scaled_positions_that_are_not_read_is_refused(
    tensor: str | None, values: dict[str, str | float], told: str, tmp_path: Path
) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", more={tensor: (4,)} if tensor else {}, values=values))
    assert problem_of(source) == (
        f"it scales its rotary embeddings ({told}), which transformers does not read from GGUF files, so every position would be "
        "another; take the checkpoint that the file was made from"
    )


@pytest.mark.parametrize(
    "values",
    [
        {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
        {"llama.rope.scaling.factor": 1.0},
        {"llama.rope.scaling.attn_factor": 2.0},
    ],
)
def test_a_gguf_file_whose_positions_are_not_scaled_raises_no_alarm(values: dict[str, str | float], tmp_path: Path) -> None:
    source = GgufModel(path=write_gguf(tmp_path / "tiny.gguf", values=values), placement="cpu")
    source.check_weights()
    source.open()


def test_factors_of_positions_are_fine_where_the_config_has_the_scaling(tmp_path: Path) -> None:
    file = Path(write_gguf(tmp_path / "tiny.gguf", more={"rope_freqs.weight": (4,)}))
    config = tiny_config("llama", rope_parameters={"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0})
    with pytest.warns(UserWarning, match=r"rope_freqs\.weight is not read"):
        check_table(file, config, "tiny")


def test_a_gguf_file_of_experts_is_read_as_it_was_written(tmp_path: Path) -> None:
    file, model = write_gguf_of_experts(tmp_path / "tiny.gguf")
    source = GgufModel(path=file, placement="cpu")
    source.check_weights()
    found = source.open().model.state_dict()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("part", "told"),
    [("up", "4x32x768 and by its config 4x768x32"), ("down", "4x768x32 and by its config 4x32x768")],
)
def test_experts_of_a_gguf_file_that_lie_the_other_way_round_are_named(part: str, told: str, tmp_path: Path) -> None:
    name = f"blk.1.ffn_{part}_exps.weight"
    file, _ = write_gguf_of_experts(tmp_path / "tiny.gguf", turn=name)
    assert problem_of(GgufModel(path=file, placement="cpu")) == f"{name} is {told}"


def test_half_of_the_experts_of_a_block_of_a_gguf_file_is_missed(tmp_path: Path) -> None:
    name = "blk.1.ffn_up_exps.weight"
    file, _ = write_gguf_of_experts(tmp_path / "tiny.gguf", leave_out=name)
    assert problem_of(GgufModel(path=file, placement="cpu")) == f"{name} is missing"
