"""Checkpoints of the decode model: read back they compute what our decode stage computes, in every family."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from pdtrim_core.api import BlockModel, Drop, Element, KvOnly, Merge, PdtrimError, Plan, PlanError, PluginError, Removal, Shrink
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan, small_run
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.older_readers import with_older_keys
from tests.unit.plugins.exported import decode_logits, export, logits_of, parameters_of, read_back, thin


def check_same(model: BlockModel, plan: Any, out: Path) -> Any:
    """Export, read back, compare; return the model that was read."""
    written = export(Checkpoints(), model, plan, out)
    assert written == [out / "decode", out / "unified"]
    loaded = read_back(out / "decode")
    # The same weights elsewhere in memory, so that products may get other kernels.
    assert units_apart(logits_of(loaded), decode_logits(model, plan, out)) <= ROUNDING
    return loaded


@pytest.mark.numeric
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_comes_back_with_the_same_logits(family: str, tied: bool, tmp_path: Path) -> None:
    model = tiny_model(family, tie_word_embeddings=tied)
    plan: list[Element] = [Drop(0), Merge(3, 2)]
    loaded = check_same(model, plan, tmp_path)
    assert type(loaded) is type(model.model)
    assert parameters_of(loaded) == model.sizes.kept_parameters(Plan.unified(Removal(plan)), "decode")
    assert loaded.config.num_hidden_layers == 4


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "gemma3", "opt", "gpt-neox", "mixtral", "qwen3-moe"])
def test_one_width_gives_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    loaded = check_same(
        model, [Shrink(block, "mlp", (1, 2)) for block in range(6)] if model.units(0).has("mlp") else [], tmp_path
    )
    assert type(loaded) is type(model.model)


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3", "gemma3", "mixtral", "qwen3-moe"])
def test_one_number_of_heads_gives_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    loaded = check_same(model, [s for block in range(6) for s in thin(model, block, range(16))], tmp_path)
    assert type(loaded) is type(model.model)
    assert loaded.config.num_key_value_heads == 1
    assert loaded.config.head_dim == 8


@pytest.mark.numeric
@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "phi3"])
def test_widths_by_block_give_a_class_of_our_own(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    loaded = check_same(model, [Drop(1), Merge(2, 3), *thin(model, 5, (0, 7))], tmp_path)
    assert type(loaded).__name__ == f"PDTrim{type(model.model).__name__}"
    assert "import pdtrim_plugins.checkpoints" in (tmp_path / "decode" / "README.md").read_text()


@pytest.mark.numeric
def test_heads_that_the_familys_config_cannot_say_give_a_class_of_our_own(tmp_path: Path) -> None:
    # OPT's size of a head follows from the number of heads.
    model = tiny_model("opt")
    assert type(check_same(model, [Shrink(b, "attention", (1,)) for b in range(6)], tmp_path)).__name__ == "PDTrimOPTForCausalLM"


@pytest.mark.numeric
def test_biases_that_stand_for_lost_channels_are_kept(tmp_path: Path) -> None:
    model = tiny_llama()
    shrink = Shrink(2, "mlp", (3, 4))
    thin_block = model.narrowed([shrink], {})
    out = torch.nn.Linear(46, 32, bias=True)
    out.weight = thin_block.get_submodule("mlp.down_proj").weight  # type: ignore[assignment]
    out.requires_grad_(requires_grad=False)
    export(Checkpoints(), model, [shrink], tmp_path, modules={shrink: out})
    loaded = read_back(tmp_path / "decode")
    assert torch.equal(loaded.model.layers[2].mlp.down_proj.bias, out.bias)
    assert units_apart(logits_of(loaded), decode_logits(model, [shrink], tmp_path)) <= ROUNDING


@pytest.mark.numeric
def test_lists_by_block_are_cut_to_the_kept_blocks(tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    kinds = model.config.layer_types
    export(Checkpoints(), model, [Drop(1), Merge(3, 2)], tmp_path)
    config = json.loads((tmp_path / "decode" / "config.json").read_text())
    assert config["layer_types"] == [kinds[block] for block in (0, 3, 4, 5)]


@pytest.mark.numeric
def test_blocks_keep_their_experts_under_another_number(tmp_path: Path) -> None:
    # Every second block has experts, so that without block 0 all would change places.
    model = tiny_model("qwen3-moe", mlp_only_layers=[1], decoder_sparse_step=2)
    loaded = check_same(model, [Drop(0)], tmp_path)
    assert loaded.config.mlp_only_layers == [0, 1, 3]
    with safe_open(tmp_path / "decode" / "model.safetensors", "pt") as weights:
        assert "model.layers.2.mlp.experts.0.gate_proj.weight" in weights.keys()  # noqa: SIM118 - no mapping


@pytest.mark.numeric
def test_a_model_inside_a_larger_one_comes_back(tmp_path: Path, seeing_model: BlockModel) -> None:
    loaded = check_same(seeing_model, [Drop(0), Merge(3, 2)], tmp_path)
    # The lists of the other half, which has as many blocks, stay as they are.
    assert loaded.config.vision_config.num_hidden_layers == 6


def test_what_makes_the_input_of_a_model_that_sees_goes_with_it(tmp_path: Path, seeing_model: BlockModel) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("preprocessor_config.json", "processor_config.json", "other.json"):
        (source / name).write_text(f'{{"name": "{name}"}}')
    seeing_model.files = (source / "model.safetensors",)
    export(Checkpoints(), seeing_model, [Drop(0)], tmp_path / "out")
    folders = [file.parent for file in (tmp_path / "out").rglob("config.json")]
    assert folders
    for folder in folders:
        copied = {file.name: file.read_text() for file in folder.glob("*process*.json")}
        assert copied == {name: f'{{"name": "{name}"}}' for name in ("preprocessor_config.json", "processor_config.json")}
        assert not (folder / "other.json").exists()


def test_what_lies_beside_the_weights_of_a_model_of_text_stays_there(tmp_path: Path) -> None:
    model = tiny_llama()
    (tmp_path / "preprocessor_config.json").write_text("{}")
    model.files = (tmp_path / "model.safetensors",)
    export(Checkpoints(), model, [Drop(0)], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("preprocessor_config.json"))


@pytest.fixture
def seeing_model(monkeypatch: pytest.MonkeyPatch) -> BlockModel:
    seeing = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 6, "num_attention_heads": 2, "image_size": 28}
    config = {
        "text_config": {**FAMILIES["gemma3"][1], "model_type": "gemma3_text"},
        "vision_config": {**seeing, "patch_size": 14},
        "mm_tokens_per_image": 4,
        **{f"{name}_token_index": 250 for name in ("boi", "eoi", "image")},
    }
    monkeypatch.setattr("pdtrim_core.testing.models.FAMILIES", {**FAMILIES, "gemma3-whole": ("gemma3", config)})
    return tiny_model("gemma3-whole")


def test_blocks_that_compute_with_their_number_are_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    model.config.scale_attn_by_inverse_layer_idx = True
    with pytest.raises(PdtrimError, match=r"its blocks compute with their own number \(scale_attn_by_inverse_layer_idx\)"):
        export(Checkpoints(), model, [Drop(0)], tmp_path)
    assert not (tmp_path / "decode").exists()


def test_what_a_config_cannot_say_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    model.blocks[3].self_attn.sliding_window = 8  # type: ignore[union-attr]
    with pytest.raises(PdtrimError) as caught:
        export(Checkpoints(), model, [Drop(0)], tmp_path)
    assert str(caught.value) == (
        "tiny qwen2: the config of this family cannot describe block 3 as block 2 of the checkpoint: "
        "self_attn.sliding_window is 8, and would be None"
    )


def test_a_replaced_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    outcome, model = small_run()
    with pytest.raises(PdtrimError, match="have shapes that no class of transformers or of an engine has"):
        list(Checkpoints().export(replace(outcome, saved_plan=None), model, tmp_path))


def test_another_model_is_refused(tmp_path: Path) -> None:
    outcome, _ = small_run()
    with pytest.raises(PlanError, match=r"has other weights \(\w{12}\): run the recipe again on this model"):
        list(Checkpoints().export(outcome, tiny_llama(seed=1), tmp_path))


def test_large_weights_are_cut_into_shards(tmp_path: Path) -> None:
    model = tiny_llama(tie_word_embeddings=False)
    export(Checkpoints(max_shard=1e-4), model, [Drop(1)], tmp_path)
    folder = tmp_path / "decode"
    shards = sorted(folder.glob("model-*.safetensors"))
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert [shard.name for shard in shards] == [f"model-{n + 1:05d}-of-{len(shards):05d}.safetensors" for n in range(len(shards))]
    assert sorted(set(index["weight_map"].values())) == [shard.name for shard in shards]
    # A header is smaller than 3 kB here.
    assert all(shard.stat().st_size <= 1e5 + 3000 for shard in shards)
    assert index["metadata"]["total_size"] == 4 * parameters_of(read_back(folder))
    assert not list(folder.glob("part-*"))
    assert units_apart(logits_of(read_back(folder)), decode_logits(model, [Drop(1)], tmp_path)) <= ROUNDING


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_weights_are_stored_in_the_format_that_was_asked_for(dtype: Any, tmp_path: Path) -> None:
    model = tiny_llama()
    export(Checkpoints(dtype=dtype), model, [Drop(1)], tmp_path)
    loaded = read_back(tmp_path / "decode")
    assert loaded.dtype == getattr(torch, dtype)
    assert torch.equal(loaded.model.embed_tokens.weight, model.model.model.embed_tokens.weight.to(loaded.dtype))


def test_the_unified_model_takes_no_room_of_its_own(tmp_path: Path) -> None:
    export(Checkpoints(), tiny_llama(), [Drop(1)], tmp_path)
    files = [tmp_path / folder / "model.safetensors" for folder in ("decode", "unified")]
    assert files[0].samefile(files[1])
    assert torch.equal(logits_of(read_back(tmp_path / "unified")), logits_of(read_back(tmp_path / "decode")))
    assert (tmp_path / "decode" / "README.md").read_text() != (tmp_path / "unified" / "README.md").read_text()


def test_the_plans_hash_is_that_of_the_plan_file(tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan.unified(Removal([Drop(1)])), tmp_path)
    list(Checkpoints().export(outcome, model, tmp_path))
    config = json.loads((tmp_path / "decode" / "config.json").read_text())
    assert config["pdtrim"] == {"format": 1, "plan_hash": outcome.plan.digest}
    assert f"plan_hash `{outcome.plan.digest}`" in (tmp_path / "decode" / "README.md").read_text()


def test_the_card_tells_what_was_removed_and_carries_the_licence_over(tmp_path: Path) -> None:
    source = save_tiny_model(tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: other\nlicense_name: tiny-licence\ntags:\n- x\n---\n# Tiny\n")
    model = tiny_llama()
    model.name = str(source)
    plan = Plan(prefill=Removal([KvOnly(4)]), decode=Removal([Drop(1), Merge(2, 3), Shrink(5, "mlp", (1, 2))]))
    export(Checkpoints(), model, plan, tmp_path / "out")
    card = (tmp_path / "out" / "decode" / "README.md").read_text()
    assert card.startswith("---\nlicense: other\nlicense_name: tiny-licence\nlibrary_name: transformers\n")
    assert "* prefill: K/V only: 4" in card
    assert "* decode: removed: 1; merged into one block: 2+3; fewer MLP channels: 2 in block 5" in card
    assert "| dense | " in card
    assert "* objective: margin" in card
    assert "tiny-licence" in card.split("---\n", 2)[2]


def test_a_licence_that_is_not_known_is_said_to_be_so(tmp_path: Path) -> None:
    export(Checkpoints(), tiny_llama(), [Drop(1)], tmp_path)
    card = (tmp_path / "decode" / "README.md").read_text()
    assert "license: other\nlicense_name: that-of-the-base-model" in card
    assert "it was not found beside the model, so look it up before you share this" in card


def test_the_tokenizer_comes_along(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    model = tiny_llama()
    model.tokenizer = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "source"))
    export(Checkpoints(), model, [Drop(1)], tmp_path / "out")
    for folder in ("decode", "unified"):
        assert AutoTokenizer.from_pretrained(tmp_path / "out" / folder)("a b")["input_ids"] == model.tokenizer("a b")["input_ids"]


LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def told_by(model: BlockModel, out: Path) -> dict[str, Any]:
    """Export and return the decode model's config; read by today's class it has the rotary embedding that the model has."""
    export(Checkpoints(), model, [Drop(1)], out)
    read = read_back(out / "decode").config.rope_parameters
    # Today's class keeps the older name of a kind beside its own.
    assert {key: value for key, value in read.items() if key != "type"} == model.config.rope_parameters
    found: dict[str, Any] = json.loads((out / "decode" / "config.json").read_text())
    return found


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 7e5}, LLAMA3])
def test_older_readers_find_the_same_number_format_and_rotary_embedding(rope: dict[str, Any], tmp_path: Path) -> None:
    told = told_by(tiny_model("llama", rope_parameters=rope), tmp_path)
    assert (told["rope_theta"], told["torch_dtype"]) == (rope["rope_theta"], told["dtype"])
    scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
    assert told.get("rope_scaling") == (scaling if rope is LLAMA3 else None)


@pytest.mark.parametrize(("family", "name"), [("llama", "type"), ("gpt-neox", "type"), ("mistral", "rope_type")])
def test_early_readers_of_some_families_take_a_scaling_of_two_fields_alone(family: str, name: str, tmp_path: Path) -> None:
    told = told_by(tiny_model(family, rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}), tmp_path)
    assert told["rope_scaling"] == {name: "linear", "factor": 2.0}


@pytest.mark.numeric
@pytest.mark.parametrize("scaling", [{"rope_type": "default"}, {"rope_type": "linear", "factor": 2.0}])
def test_gpt_neox_has_other_names_for_base_and_share(scaling: dict[str, Any], tmp_path: Path) -> None:
    # Half of a head's 8 channels: a quarter, the default, would be a single frequency, the same with every base.
    model = tiny_model("gpt-neox", rope_parameters={"rope_theta": 7e3, "partial_rotary_factor": 0.5, **scaling})
    told = told_by(model, tmp_path)
    assert (told["rotary_emb_base"], told["rotary_pct"]) == (7e3, 0.5)
    assert units_apart(logits_of(read_back(tmp_path / "decode")), decode_logits(model, [Drop(1)], tmp_path)) <= ROUNDING


def test_bases_by_kind_of_block_are_not_flattened_to_one() -> None:
    # Newer readers would take rope_scaling before rope_parameters, and the one scaling for both kinds of blocks.
    local, whole = {"rope_type": "default", "rope_theta": 1e4}, {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
    config = {"model_type": "ministral", "rope_parameters": {"sliding_attention": local, "full_attention": whole}}
    assert with_older_keys(config)["rope_theta"] == 1e6
    assert "rope_scaling" not in with_older_keys(config)
    assert with_older_keys({**config, "model_type": "gemma3_text"})["rope_scaling"] == {"rope_type": "linear", "factor": 8.0}


def test_a_window_of_no_width_is_none() -> None:
    assert with_older_keys({"model_type": "qwen2_moe", "sliding_window": 0})["sliding_window"] is None


def test_older_readers_find_the_tokenizers_class_and_its_special_tokens(tmp_path: Path) -> None:
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    model = tiny_llama()
    source = PreTrainedTokenizerFast.from_pretrained(save_tiny_model(tmp_path / "source"))
    source.add_special_tokens({"extra_special_tokens": ["<call>"]})
    model.tokenizer = source
    export(Checkpoints(), model, [Drop(1)], tmp_path / "out")
    for folder in ("decode", "unified"):
        told = json.loads((tmp_path / "out" / folder / "tokenizer_config.json").read_text())
        assert (told["tokenizer_class"], told["additional_special_tokens"]) == ("PreTrainedTokenizerFast", ["<call>"])
        assert "extra_special_tokens" not in told
        again = AutoTokenizer.from_pretrained(tmp_path / "out" / folder)
        assert again.extra_special_tokens == ["<call>"]
        assert again("a<call>b")["input_ids"] == source("a<call>b")["input_ids"]


def test_local_blocks_have_their_own_base_for_older_readers(tmp_path: Path) -> None:
    model = tiny_model("gemma3")
    export(Checkpoints(), model, [Drop(1)], tmp_path)
    told = json.loads((tmp_path / "decode" / "config.json").read_text())
    ropes = model.config.rope_parameters
    assert told["rope_theta"] == ropes["full_attention"]["rope_theta"]
    assert told["rope_local_base_freq"] == ropes["sliding_attention"]["rope_theta"]
    assert read_back(tmp_path / "decode").config.rope_parameters == ropes


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe"])
def test_older_readers_find_the_count_of_experts_by_the_name_that_they_know(family: str, tmp_path: Path) -> None:
    export(Checkpoints(), tiny_model(family), [Drop(1)], tmp_path)
    told = json.loads((tmp_path / "decode" / "config.json").read_text())
    assert (told["num_experts"], told["num_local_experts"]) == (4, 4)
    assert read_back(tmp_path / "decode").config.num_local_experts == 4


def test_an_earlier_export_is_replaced_and_another_folder_is_not(tmp_path: Path) -> None:
    model = tiny_llama()
    for gone in (1, 2):
        export(Checkpoints(), model, [Drop(gone)], tmp_path)
    loaded = read_back(tmp_path / "decode").state_dict()["model.layers.1.mlp.down_proj.weight"]
    assert torch.equal(loaded, model.model.state_dict()["model.layers.1.mlp.down_proj.weight"])
    shutil.rmtree(tmp_path / "decode")
    save_tiny_model(tmp_path / "decode")
    with pytest.raises(
        PdtrimError, match="decode exists and is no earlier export: move it away, or choose another folder with --out"
    ):
        export(Checkpoints(), model, [Drop(1)], tmp_path)
    assert len(list((tmp_path / "decode").glob("tokenizer*"))) == 2


STRANGERS = {
    "README.md": "A note about plan_hash.\n",
    "config.json": '{"pdtrim": {"plan_hash": "0"}}',
    "plan.json": '{"plan_hash": "0"}',
    "pdtrim-export.json": '["README.md"]',
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_folder_that_only_speaks_of_plans_is_no_earlier_export(name: str, tmp_path: Path) -> None:
    (tmp_path / "decode").mkdir()
    (tmp_path / "decode" / name).write_text(STRANGERS[name])
    (tmp_path / "decode" / "thesis.tex").touch()
    with pytest.raises(PdtrimError, match="decode exists and is no earlier export: move it away"):
        export(Checkpoints(), tiny_llama(), [Drop(1)], tmp_path)
    assert len(list((tmp_path / "decode").iterdir())) == 2


@pytest.mark.parametrize("theirs", ["thesis.tex", "adapter/weights.safetensors", ".hidden"])
def test_what_someone_put_into_an_export_is_not_replaced_with_it(theirs: str, tmp_path: Path) -> None:
    model = tiny_llama()
    export(Checkpoints(), model, [Drop(1)], tmp_path)
    file = tmp_path / "decode" / theirs
    file.parent.mkdir(exist_ok=True)
    file.touch()
    with pytest.raises(PdtrimError, match=rf"decode has {theirs}, which no export wrote: move it away, or choose another folder"):
        export(Checkpoints(), model, [Drop(2)], tmp_path)
    file.unlink()
    export(Checkpoints(), model, [Drop(2)], tmp_path)


@pytest.mark.parametrize("failing", ["pdtrim_plugins.exporters.shards.write_tensors", "pdtrim_plugins.exporters.card._front"])
def test_a_full_disk_keeps_the_earlier_export(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    export(Checkpoints(), model, [Drop(1)], tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*_args: object, **_kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(failing, full)
    with pytest.raises((PdtrimError, PluginError), match=r"cannot write .*decode: No space left on device"):
        export(Checkpoints(), model, [Drop(1)], tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


def test_a_checkpoint_of_another_format_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    export(Checkpoints(), model, [Shrink(2, "mlp", (3,))], tmp_path)
    config = json.loads((tmp_path / "decode" / "config.json").read_text())
    config["pdtrim"]["format"] = 4
    (tmp_path / "decode" / "config.json").write_text(json.dumps(config))
    with pytest.raises(PdtrimError, match="the config has pdtrim format 4, this version reads 3: export the run again"):
        read_back(tmp_path / "decode")


def test_no_shard_waits_for_more_than_its_size(tmp_path: Path) -> None:
    from pdtrim_plugins.exporters.shards import ShardWriter

    writer = ShardWriter(tmp_path, 100)
    sizes = [3, 20, 4, 9, 9, 9, 60]
    for number, size in enumerate(sizes):
        writer.add({f"w{number}": torch.zeros(size)})
        held = sum(tensor.nbytes for tensor in writer._waiting.values())
        # One tensor larger than a shard is a shard of its own.
        assert held <= max(100, 4 * size)
    writer.finish()
    assert math.fsum(sizes) == writer.parameters
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
