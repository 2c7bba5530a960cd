"""GGUF files of blocks that differ: what is written is the unified model's, and llama.cpp computes the same with it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.api import BlockModel, DropPart, Element, PdtrimError, Shrink
from pdtrim_core.host.host import load_plugins
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.testing import tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.model_sources import FolderModel, GgufModel
from tests.unit.plugins import llama_cpp
from tests.unit.plugins.exported import TOKENS, export, read_back
from tests.unit.plugins.test_export_gguf import refused, tokenizer, with_tokenizer

__all__ = ["tokenizer"]

UNEVEN: list[Element] = [Shrink(1, "mlp", (0, 5, 9)), Shrink(3, "mlp", tuple(range(16))), Shrink(4, "attention", (1,))]
LACKING: list[Element] = [DropPart(0, "attention"), DropPart(2, "mlp"), DropPart(5, "attention"), Shrink(2, "attention", (0,))]
FEWER_HEADS: list[Element] = [Shrink(block, "attention", (1,)) for block in range(6)]
HEAD_DIM = 8
LETTERS = list(range(94))
"""The tokens that are ASCII characters."""


def biased(elements: Sequence[Element], model: BlockModel) -> dict[Any, nn.Module]:
    """Return projections out of narrowed parts that have a bias of their own, as pruners give them."""
    made: dict[Any, nn.Module] = {}
    for number, element in enumerate(one for one in elements if isinstance(one, Shrink)):
        units = model.units(element.block)
        dense: Any = model.blocks[element.block].get_submodule("mlp.down_proj" if element.part == "mlp" else "self_attn.o_proj")
        width = (units.count(element.part) - len(element.units)) * dense.in_features // units.count(element.part)
        torch.manual_seed(number)
        made[element] = nn.Linear(width, dense.out_features)
    return made


def written(model: BlockModel, plan: Sequence[Element], out: Path, *, bias: bool = True, gguf: Gguf | None = None) -> Any:
    """Export a plan as a GGUF file and as a checkpoint, and return the latter's model."""
    modules = biased(plan, model) if bias else None
    for exporter in (gguf or Gguf(), Checkpoints()):
        export(exporter, model, plan, out, modules=modules)
    return read_back(out / "unified", dtype=torch.float32)


def file_in(out: Path) -> Path:
    (file,) = (out / "gguf").glob("*.gguf")
    return file


def values_of(file: Path) -> dict[str, Any]:
    import gguf

    return {name.split(".", 1)[1]: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def tensors_of(file: Path) -> dict[str, Tensor]:
    import gguf

    return {tensor.name: torch.from_numpy(tensor.data.copy()) for tensor in gguf.GGUFReader(file).tensors}


def in_halves(rows: Tensor) -> Tensor:
    """Return the rows of Q or K in the order of transformers: first the even ones of a head, then the odd ones."""
    heads = rows.reshape(-1, HEAD_DIM, *rows.shape[1:])
    return torch.cat([heads[:, 0::2], heads[:, 1::2]], dim=1).reshape(rows.shape)


NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def compare(file: Path, unified: Any) -> tuple[set[str], set[str]]:
    """Compare the tensors of a file with those of a model; return the names of those that only one of the two has."""
    wanted, found = {name.removeprefix("model."): tensor for name, tensor in unified.state_dict().items()}, tensors_of(file)
    alone = set()
    for name, tensor in found.items():
        if not name.startswith("blk."):
            continue
        _, block, part, kind = name.split(".")
        ours = wanted.pop(f"layers.{block}.{NAMES[part]}.{kind}", None)
        if ours is None:
            alone.add(name)
        else:
            assert torch.equal(in_halves(tensor) if part in ("attn_q", "attn_k") else tensor, ours), name
    return alone, {name for name in wanted if name.startswith("layers.")}


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2"])
def test_blocks_of_other_widths_are_written_for_deci(family: str, tmp_path: Path, tokenizer: Any) -> None:
    unified = written(with_tokenizer(tiny_model(family), tokenizer), UNEVEN, tmp_path)
    values = values_of(file_in(tmp_path))
    assert values["architecture"] == "deci"
    assert values["feed_forward_length"] == [48, 45, 48, 32, 48, 48]
    assert values["attention.head_count"] == [4, 4, 4, 4, 2, 4]
    assert values["attention.head_count_kv"] == [2, 2, 2, 2, 1, 2]
    assert (values["attention.key_length"], values["rope.dimension_count"]) == (HEAD_DIM, HEAD_DIM)
    assert compare(file_in(tmp_path), unified) == (set(), set())
    biases = {name for name in tensors_of(file_in(tmp_path)) if name.endswith(("ffn_down.bias", "attn_output.bias"))}
    assert biases == {"blk.1.ffn_down.bias", "blk.3.ffn_down.bias", "blk.4.attn_output.bias"}


def test_a_block_without_a_part_has_no_heads_or_channels_of_zeros(tmp_path: Path, tokenizer: Any) -> None:
    unified = written(with_tokenizer(tiny_model(), tokenizer), LACKING, tmp_path)
    values = values_of(file_in(tmp_path))
    assert values["architecture"] == "deci"
    # The size of heads is looked for in block 0, and deci skips all of a block that has no channels.
    assert values["attention.head_count"] == [1, 4, 2, 4, 4, 0]
    assert values["attention.head_count_kv"] == [1, 2, 1, 2, 2, 0]
    assert values["feed_forward_length"] == [48, 48, 32, 48, 48, 48]
    attention, mlp = ("attn_q", "attn_k", "attn_v", "attn_output"), ("ffn_gate", "ffn_up", "ffn_down")
    zeros = {*(f"blk.0.{name}.weight" for name in attention), *(f"blk.2.{name}.weight" for name in mlp)}
    # A block without attention has no norm in front of it there, and where a norm is needed it is the unified model's.
    assert compare(file_in(tmp_path), unified) == (zeros, {"layers.5.input_layernorm.weight"})
    assert not any(bool(tensors_of(file_in(tmp_path))[name].any()) for name in zeros)


def test_the_plain_architecture_stays_where_blocks_are_alike(tmp_path: Path, tokenizer: Any) -> None:
    alike: list[Element] = [Shrink(block, "mlp", (block,)) for block in range(6)]
    for family, bias, architecture in (
        ("llama", False, "llama"),
        ("llama", True, "llama"),
        ("qwen2", False, "qwen2"),
        ("qwen2", True, "llama"),  # llama.cpp's qwen2 reads no bias of an MLP, its llama does
        ("qwen3", False, "qwen3"),
    ):
        out = tmp_path / f"{family}-{bias}"
        unified = written(with_tokenizer(tiny_model(family), tokenizer), alike, out, bias=bias)
        values = values_of(file_in(out))
        assert (values["architecture"], values["feed_forward_length"], values["attention.head_count"]) == (architecture, 47, 4)
        assert any(name.endswith("ffn_down.bias") for name in tensors_of(file_in(out))) is bias
        if architecture == "llama":
            assert compare(file_in(out), unified) == (set(), set())


def test_fewer_heads_in_all_blocks_are_no_qwen2_of_llama_cpp(tmp_path: Path, tokenizer: Any) -> None:
    unified = written(with_tokenizer(tiny_model("qwen2"), tokenizer), FEWER_HEADS, tmp_path, bias=False)
    values = values_of(file_in(tmp_path))
    # Its qwen2 takes Q for as wide as hidden states, its llama does not.
    assert (values["architecture"], values["attention.head_count"], values["attention.head_count_kv"]) == ("llama", 2, 1)
    assert compare(file_in(tmp_path), unified) == (set(), set())


def test_an_export_that_is_pruned_again_is_written_too(tmp_path: Path, tokenizer: Any) -> None:
    written(with_tokenizer(tiny_model(), tokenizer), UNEVEN, tmp_path / "first")
    model = open_model(FolderModel(path=str(tmp_path / "first" / "unified"), placement="cpu"), load_plugins())
    out = tmp_path / "again"
    unified = written(model, [Shrink(0, "mlp", (1, 2)), DropPart(2, "attention")], out, bias=False, gguf=Gguf(pre="gpt-2"))
    values = values_of(file_in(out))
    assert values["feed_forward_length"] == [46, 45, 48, 32, 48, 48]
    assert values["attention.head_count"] == [4, 4, 0, 4, 2, 4]
    assert compare(file_in(out), unified) == (set(), {"layers.2.input_layernorm.weight"})


def test_what_deci_cannot_say_is_refused_with_its_reason(tmp_path: Path, tokenizer: Any) -> None:
    model = with_tokenizer(tiny_model("qwen3"), tokenizer)
    why = (
        "llama.cpp has other blocks in its deci alone, and qwen3 normalises Q and K, which deci does not: let the pruner narrow "
        'all blocks alike (such as width = "uniform") without new biases, or drop whole blocks'
    )
    assert refused(model, [Shrink(1, "mlp", (1,))], tmp_path).endswith(why)
    assert refused(model, [DropPart(1, "mlp")], tmp_path) == (
        "in a GGUF file of qwen3 all blocks have one shape, both parts and the family's own biases, and decode may run blocks "
        f"without their attention or their MLP: {why}"
    )


@pytest.mark.usefixtures("own_cache")
def test_a_file_of_such_blocks_is_refused_as_a_model(tmp_path: Path, tokenizer: Any) -> None:
    export(Gguf(), with_tokenizer(tiny_model(), tokenizer), UNEVEN, tmp_path)
    source = GgufModel(path=str(file_in(tmp_path)), placement="cpu")
    for ask in (source.open_config, source.check_weights, source.open):
        with pytest.raises(PdtrimError) as caught:
            ask()
        assert str(caught.value) == (
            f"cannot open the model {file_in(tmp_path)}: its blocks differ from one another (architecture deci of llama.cpp), "
            "which is not read from GGUF files: take the checkpoint of the same run, unified/ of the exporter checkpoints"
        )
    assert source.block_count() == 6


@pytest.mark.skipif(find_spec("xllamacpp") is None, reason="no llama.cpp here: pip install xllamacpp")
@pytest.mark.parametrize(
    ("family", "plan"),
    [
        ("llama", UNEVEN),
        ("llama", LACKING),
        ("llama", [Shrink(block, "mlp", (block,)) for block in range(6)]),
        ("mistral", [*UNEVEN, DropPart(2, "attention")]),
        ("qwen2", UNEVEN),
        ("qwen2", [*LACKING, Shrink(3, "mlp", (1,))]),
        ("qwen2", [Shrink(block, "mlp", (block,)) for block in range(6)]),
        ("qwen2", FEWER_HEADS),
        ("llama", FEWER_HEADS),
        ("qwen3", FEWER_HEADS),
    ],
)
def test_llama_cpp_computes_the_same(family: str, plan: list[Element], tmp_path: Path, tokenizer: Any) -> None:
    unified = written(with_tokenizer(tiny_model(family), tokenizer), plan, tmp_path, bias=plan is not FEWER_HEADS)
    prompts = TOKENS.tolist()
    asked = json.dumps({"prompts": prompts, "tokens": 6, "vocabulary": unified.config.vocab_size, "among": LETTERS})
    told = tmp_path / "told.json"
    # A process of its own, since a failed assertion of llama.cpp ends it.
    command = [sys.executable, llama_cpp.__file__, str(file_in(tmp_path)), asked, str(told)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    for prompt, answer in zip(prompts, json.loads(told.read_text()), strict=True):
        tokens = [token for token, _ in answer]
        assert len(tokens) == 6
        with torch.inference_mode():
            logits = unified(input_ids=torch.tensor([[*prompt, *tokens[:-1]]]), use_cache=False).logits[0]
        wanted = logits[len(prompt) - 1 :].log_softmax(-1)
        found = torch.tensor([logprobs for _, logprobs in answer])
        # The engine's kernels add in another order; a part that was left out would change a logprob by hundredths.
        assert float((found - wanted).abs().max()) < 1e-4
