"""A GGUF file is read quickly, once, and to what the package gguf makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.model_sources import GgufModel
from pdtrim_plugins.model_sources.gguf_reader import AT_ONCE, quick_gguf
from tests.unit.plugins.gguf_files import write_gguf

pytestmark = pytest.mark.usefixtures("own_cache")


def dequantised(kind: Any) -> bool:
    """Tell whether gguf can dequantise a kind that is stored in blocks of bytes."""
    _, size = gguf.GGML_QUANT_SIZES[kind]
    try:
        gguf.dequantize(np.zeros((1, size), np.uint8), kind)
    except NotImplementedError:
        return False
    return kind.name not in {"F32", "F16"}


QUANTISED = [kind for kind in gguf.GGMLQuantizationType if dequantised(kind)]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file with values of every kind."""
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    writer.add_uint32("a.number", 7)
    writer.add_string("a.text", "good morning")
    writer.add_array("a.words", ["a", "bc", "", "\u00e9\u4e2d"])
    writer.add_array("a.numbers", [1, -2, 3])
    writer.add_array("a.fractions", [0.5, -1e-8])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("token_embd.weight", np.arange(12, dtype=np.float32).reshape(3, 4))
    writer.add_tensor("output.weight", np.arange(64, dtype=np.float16).reshape(2, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "all.gguf"


def test_values_and_tensors_are_those_that_gguf_reads(file: Path) -> None:
    plain = gguf.GGUFReader(file)
    with quick_gguf():
        quick = gguf.GGUFReader(file)
    assert list(quick.fields) == list(plain.fields)
    assert len(plain.fields) == 10
    for name, field in plain.fields.items():
        assert quick.fields[name].types == field.types, name
        assert quick.fields[name].contents() == field.contents(), name
    for ours, theirs in zip(quick.tensors, plain.tensors, strict=True):
        assert (ours.name, ours.tensor_type, ours.data_offset) == (theirs.name, theirs.tensor_type, theirs.data_offset)
        np.testing.assert_array_equal(ours.data, theirs.data, strict=True)


def test_what_transformers_reads_is_the_same(file: Path) -> None:
    from transformers.modeling_gguf_pytorch_utils import read_field

    names = ["a.number", "a.text", "a.words", "a.numbers", "a.fractions", "a.bools", "a.none"]
    plain = gguf.GGUFReader(file)
    with quick_gguf():
        quick = gguf.GGUFReader(file)
    assert [read_field(quick, name) for name in names] == [read_field(plain, name) for name in names]
    assert read_field(quick, "a.words") == ["a", "bc", "", "\u00e9\u4e2d"]


def test_many_kinds_are_dequantised() -> None:
    assert {kind.name for kind in QUANTISED} >= {"Q4_0", "Q5_0", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ4_NL", "BF16"}


@pytest.mark.parametrize("kind", QUANTISED, ids=lambda kind: str(kind.name))
@pytest.mark.parametrize("shape", [(1,), (3,), (700,), (5, 130)], ids=str)
def test_dequantised_numbers_are_the_same_to_the_bit(kind: Any, shape: tuple[int, ...]) -> None:
    _, size = gguf.GGML_QUANT_SIZES[kind]
    stored = np.random.default_rng(0).integers(0, 256, (*shape, 3 * size), np.uint8)
    with np.errstate(all="ignore"):  # random bits are infinite scales too
        plain = gguf.dequantize(stored, kind)
        with quick_gguf():
            quick = gguf.dequantize(stored, kind)
    assert (quick.dtype, quick.shape) == (plain.dtype, plain.shape)
    np.testing.assert_array_equal(quick.view(np.uint32), plain.view(np.uint32))


def test_a_large_tensor_is_dequantised_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[int] = []
    slow = gguf.dequantize

    def noted(data: Any, kind: Any) -> Any:
        given.append(data.nbytes)
        return slow(data, kind)

    monkeypatch.setattr(gguf, "dequantize", noted)
    stored = np.zeros((1000, 1024 * 34 // 32), np.uint8)
    with quick_gguf():
        floats = gguf.dequantize(stored, gguf.GGMLQuantizationType.Q8_0)
    assert floats.shape == (1000, 1024)
    assert sum(given) == stored.nbytes
    assert max(given) <= AT_ONCE < stored.nbytes


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that gguf's reader has read."""
    read: list[str] = []
    begin = gguf.GGUFReader.__init__

    def noted(self: Any, path: Any, *rest: Any) -> None:
        read.append(str(path))
        begin(self, path, *rest)

    monkeypatch.setattr(gguf.GGUFReader, "__init__", noted)
    return read


def test_a_model_is_opened_with_one_reading_of_its_file(readings: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    GgufModel(path=path).open()
    assert readings == [path]


def test_weights_are_checked_with_one_reading_of_the_file(readings: list[str], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    GgufModel(path=path).check_weights()
    assert readings == [path]


def test_a_file_that_changed_is_read_again(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf")
    before = GgufModel(path=path).open_config()
    write_gguf(tmp_path / "tiny.gguf", values={"llama.rope.freq_base": 7.0})
    after = GgufModel(path=path).open_config()
    assert before.rope_parameters["rope_theta"] != after.rope_parameters["rope_theta"] == 7


def test_gguf_is_left_as_it_was(tmp_path: Path) -> None:
    before = (gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map)
    GgufModel(path=write_gguf(tmp_path / "tiny.gguf")).open()
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    with pytest.raises(PdtrimError):
        GgufModel(path=str(tmp_path / "tiny.gguf")).open()
    assert (gguf.GGUFReader, gguf.dequantize, gguf.get_tensor_name_map) == before


def test_no_random_number_is_drawn_for_weights_that_are_read(tmp_path: Path) -> None:
    import torch

    path = write_gguf(tmp_path / "tiny.gguf")
    before = torch.random.get_rng_state()
    model = GgufModel(path=path).open().model
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not hasattr(model.config, "quantization_config")
    assert Path(model.name_or_path, "config.json").is_file()


@pytest.mark.parametrize("length", [2**62, 10**6, 3000])
def test_a_vocabulary_that_is_longer_than_its_file_is_refused(length: int, file: Path) -> None:
    content = bytearray(file.read_bytes())
    place = content.index(b"a.words") + len(b"a.words") + 4 + 4  # the number of its entries stands there
    content[place : place + 8] = length.to_bytes(8, "little")
    file.write_bytes(content)
    with pytest.raises(PdtrimError) as caught:
        GgufModel(path=str(file)).open()
    assert str(caught.value).startswith(f"cannot open the model {file}: ")
