"""GGUF files: read back through transformers they compute the same, to the error of their number format."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import BlockModel, Drop, Element, Merge, PdtrimError, Shrink
from pdtrim_core.testing import tiny_llama, tiny_model
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_core.testing.rounding import ROUNDING, units_apart
from pdtrim_plugins.exporters.gguf_file import Gguf
from tests.unit.plugins.exported import decode_logits, export, logits_of, read_back

pytestmark = pytest.mark.numeric

WIDE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96}
"""Rows that fall into Q8_0's blocks of 32."""


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """A byte-level tokenizer with two merges and a special token."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "bc", "abc"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=[("b", "c"), ("a", "bc")]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<end>")


def with_tokenizer(model: BlockModel, tokenizer: Any) -> BlockModel:
    model.tokenizer = tokenizer
    return model


def read_gguf(out: Path) -> Any:
    (file,) = (out / "gguf").glob("*.gguf")
    return read_back(out / "gguf", gguf_file=file.name, dtype=torch.float32)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_every_family_comes_back_with_the_same_logits(family: str, tied: bool, tmp_path: Path, tokenizer: Any) -> None:
    # transformers takes the heads of every qwen3 for the 128 numbers that those of the real ones have.
    shape: dict[str, Any] = {"head_dim": 128} if family == "qwen3" else {}
    model = with_tokenizer(tiny_model(family, tie_word_embeddings=tied, **shape), tokenizer)
    plan: list[Element] = [Drop(0), Merge(3, 2)]
    export(Gguf(), model, plan, tmp_path)
    assert sorted(file.name for file in (tmp_path / "gguf").iterdir()) == [
        "README.md",
        "pdtrim-export.json",
        f"tiny-{family}-F32.gguf",
    ]
    # No number is changed on the way, and rows that were interleaved come back in order.
    assert units_apart(logits_of(read_gguf(tmp_path)), decode_logits(model, plan, tmp_path)) <= ROUNDING


@pytest.mark.parametrize(
    ("dtype", "kind", "share"), [("float16", "F16", 1e-3), ("bfloat16", "BF16", 1e-2), ("q8_0", "Q8_0", 2e-2)]
)
def test_number_formats_err_by_what_they_leave_out(dtype: Any, kind: str, share: float, tmp_path: Path, tokenizer: Any) -> None:
    model = with_tokenizer(tiny_llama(**WIDE), tokenizer)
    export(Gguf(dtype=dtype), model, [Drop(1)], tmp_path)
    assert (tmp_path / "gguf" / f"tiny-llama-{kind}.gguf").is_file()
    wanted, found = decode_logits(model, [Drop(1)], tmp_path), logits_of(read_gguf(tmp_path))
    # A weight is off by 2^-12, 2^-9, or half of its block's largest / 127; dozens of them in a row add up to a few times that.
    assert 0 < float((found - wanted).square().mean().sqrt()) < 4 * share * float(wanted.square().mean().sqrt())


def test_one_width_of_all_blocks_comes_back(tmp_path: Path, tokenizer: Any) -> None:
    model = with_tokenizer(tiny_llama(), tokenizer)
    plan = [Shrink(b, part, (1,)) for b in range(6) for part in ("attention", "mlp")]
    export(Gguf(), model, plan, tmp_path)
    assert units_apart(logits_of(read_gguf(tmp_path)), decode_logits(model, plan, tmp_path)) <= ROUNDING


def test_the_tokenizer_comes_back(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    export(Gguf(), with_tokenizer(tiny_llama(), tokenizer), [Drop(1)], tmp_path)
    (file,) = (tmp_path / "gguf").glob("*.gguf")
    back = AutoTokenizer.from_pretrained(tmp_path / "gguf", gguf_file=file.name)
    assert back("a abc<end>!")["input_ids"] == tokenizer("a abc<end>!")["input_ids"] == [64, 220, 257, 258, 0]


@pytest.mark.parametrize(
    ("steps", "name"),
    [
        ([("ByteLevel", {"use_regex": True})], "gpt-2"),
        ([("Digits", {"individual_digits": True}), ("ByteLevel", {"use_regex": True})], "smollm"),
        ([("Split", {"pattern": "qwen2"}), ("ByteLevel", {"use_regex": False})], "qwen2"),
    ],
)
def test_the_way_a_text_is_cut_is_found_out(steps: list[tuple[str, dict[str, Any]]], name: str) -> None:
    from pdtrim_plugins.exporters.gguf_tokenizer import SPLITS, _pre

    patterns = {known: pattern for pattern, known in SPLITS.items()}
    parts = [{"type": kind, **options} for kind, options in steps]
    for part in parts:
        if "pattern" in part:
            part["pattern"] = {"Regex": patterns[part["pattern"]]}
    assert _pre({"pre_tokenizer": {"type": "Sequence", "pretokenizers": parts}}) == name


def refused(model: BlockModel, plan: Any, out: Path, exporter: Gguf | None = None) -> str:
    with pytest.raises(PdtrimError) as caught:
        export(exporter or Gguf(), model, plan, out)
    assert not (out / "gguf").exists()
    return str(caught.value)


def test_what_would_be_read_wrong_is_refused(tmp_path: Path, tokenizer: Any) -> None:
    from transformers import AutoTokenizer

    convert = ": export --to checkpoints, and convert unified/ with llama.cpp's convert_hf_to_gguf.py"
    assert refused(tiny_model("opt"), [Drop(1)], tmp_path) == (
        "GGUF files are written of the families llama, mistral, qwen2, qwen3, which were read back and compared, and tiny opt is "
        "opt" + convert
    )
    assert "is not a byte-level BPE tokenizer" in refused(tiny_llama(), [Drop(1)], tmp_path)
    other = AutoTokenizer.from_pretrained(save_tiny_model(tmp_path / "source"))
    unknown = refused(with_tokenizer(tiny_llama(), other), [Drop(1)], tmp_path)
    assert "say --set pre=NAME, one of llama.cpp's names" in unknown
    assert "has a sliding window" in refused(tiny_model("mistral", sliding_window=8), [Drop(1)], tmp_path)
    scaled = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    stretched = tiny_llama(rope_parameters={**scaled, "original_max_position_embeddings": 64})
    assert "has llama3 rotary embeddings, which no available reader reads back" in refused(stretched, [Drop(1)], tmp_path)
    small = with_tokenizer(tiny_llama(vocab_size=100, bos_token_id=1, eos_token_id=2, pad_token_id=3), tokenizer)
    assert refused(small, [Drop(1)], tmp_path) == "the tokenizer has 259 tokens, and the model 100"


def test_a_full_disk_keeps_the_earlier_file(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_tokenizer(tiny_llama(), tokenizer)
    export(Gguf(), model, [Drop(1)], tmp_path)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}

    def full(*_args: object) -> None:
        raise OSError("29 requested and 3 written")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensor_data", full)
    with pytest.raises(PdtrimError, match=r"cannot write .*gguf: 29 requested and 3 written"):
        export(Gguf(), model, [Drop(2)], tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
