"""The table of tensors of a GGUF file is what the package gguf reads of it."""

from __future__ import annotations

from pathlib import Path

import gguf
import pytest

from pdtrim_core.api import PdtrimError
from pdtrim_plugins.model_sources import GgufModel
from pdtrim_plugins.model_sources.gguf_table import table_of
from tests.unit.plugins.gguf_files import write_gguf

pytestmark = pytest.mark.usefixtures("own_cache")


def test_names_and_shapes_are_those_that_gguf_reads(tmp_path: Path) -> None:
    file = Path(write_gguf(tmp_path / "tiny.gguf", more={"one": (3,), "four": (2, 3, 4, 5)}))
    table = table_of(file)
    assert table.architecture == "llama"
    tensors = gguf.GGUFReader(file).tensors
    assert table.shapes == {tensor.name: tuple(reversed(tensor.shape.tolist())) for tensor in tensors}
    assert len(tensors) > 50


def test_values_of_every_type_are_passed_over(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "all.gguf", "llama")
    for kind, value in {
        "uint8": 1,
        "int8": -1,
        "uint16": 1,
        "int16": -1,
        "uint32": 1,
        "int32": -1,
        "uint64": 1,
        "int64": -1,
    }.items():
        getattr(writer, f"add_{kind}")(f"a.{kind}", value)
    writer.add_float32("a.float32", 0.5)
    writer.add_float64("a.float64", 0.5)
    writer.add_bool("a.bool", True)
    writer.add_array("a.numbers", [1, 2, 3])
    writer.add_array("a.bools", [True, False])
    writer.add_array("a.words", ["a", "bc", ""])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    assert table_of(tmp_path / "all.gguf").shapes == {}


@pytest.mark.parametrize("kept", [4, 20, 30, 500, 3000])
def test_a_file_that_ends_early_is_refused(kept: int, tmp_path: Path) -> None:
    file = Path(write_gguf(tmp_path / "tiny.gguf"))
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(ValueError, match="ends before its table"):
        table_of(file)
    for look in (GgufModel(path=str(file)).open, GgufModel(path=str(file)).check_weights):
        with pytest.raises(PdtrimError) as caught:
            look()
        assert str(caught.value).startswith(f"cannot open the model {file}: ")
        assert str(caught.value).isprintable()
