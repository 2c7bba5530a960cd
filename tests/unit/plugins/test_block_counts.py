"""How many blocks the files of a model say that it has, read without anything heavy."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from pdtrim_core.testing import tiny_config
from pdtrim_core.testing.models import FAMILIES
from pdtrim_plugins.model_sources.block_counts import LONGEST, blocks_in_config, blocks_in_gguf
from pdtrim_plugins.model_sources.package import PackageModel
from tests.unit.plugins.gguf_files import write_gguf


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_names_its_blocks_in_a_way_that_is_known(family: str, tmp_path: Path) -> None:
    config = tiny_config(family)
    config.save_pretrained(tmp_path)
    assert blocks_in_config(tmp_path / "config.json") == config.get_text_config().num_hidden_layers


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ('{"n_layer": 12}', 12),
        ('{"text_config": {"num_hidden_layers": 7}}', 7),
        ('{"num_hidden_layers": 7, "text_config": {"num_hidden_layers": 7}}', 7),
        # Two numbers: which of them counts the blocks is for the model to say.
        ('{"num_hidden_layers": 7, "num_layers": 8}', None),
        ('{"num_hidden_layers": "7"}', None),
        ('{"num_hidden_layers": true}', None),
        ('{"num_hidden_layers": 0}', None),
        ('{"text_config": 7}', None),
        ("[7]", None),
        ("{", None),
        ("[" * 100_000, None),
        ("\xff", None),
        ("", None),
    ],
)
def test_a_config_that_does_not_say_it_is_left_to_who_opens_the_model(text: str, count: int | None, tmp_path: Path) -> None:
    file = tmp_path / "config.json"
    file.write_text(text, encoding="latin-1")
    assert blocks_in_config(file) == count
    assert blocks_in_config(tmp_path / "gone.json") is None


def test_a_gguf_file_says_it_among_its_first_values(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    write_gguf(file)
    assert blocks_in_gguf(file) == tiny_config("llama").num_hidden_layers
    whole = file.read_bytes()
    # Wherever the file is cut, it is no error here; whoever opens it says what is wrong.
    for length in (0, 3, 4, 10, 24, 30, 60, 90):
        file.write_bytes(whole[:length])
        assert blocks_in_gguf(file) is None
    file.write_bytes(b"GGML" + whole[4:])
    assert blocks_in_gguf(file) is None
    assert blocks_in_gguf(tmp_path / "gone.gguf") is None


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _with_blocks_behind(value: bytes) -> bytes:
    blocks = _text("llama.block_count") + struct.pack("<II", 4, 9)
    return b"GGUF" + struct.pack("<IQQ", 3, 0, 2) + _text("a") + value + blocks


@pytest.mark.parametrize(
    ("value", "count"),
    [
        (struct.pack("<IIQ", 9, 8, 2) + _text("en") + _text("fr"), 9),
        (struct.pack("<IIQ", 9, 4, 3) + struct.pack("<III", 1, 2, 3), 9),
        (struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 0, 2) + b"\x01\x02", 9),
        (struct.pack("<I?", 7, True), 9),
        (struct.pack("<IIQ", 9, 8, LONGEST + 1), None),
        (struct.pack("<IQ", 8, 2**60), None),
        (struct.pack("<I", 99), None),
    ],
    ids=["texts", "numbers", "arrays", "truth", "a-vocabulary", "a-text-without-end", "no-type"],
)
def test_values_in_front_of_it_are_passed_by(value: bytes, count: int | None, tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(_with_blocks_behind(value))
    assert blocks_in_gguf(file) == count


def test_a_package_that_is_not_installed_says_nothing() -> None:
    assert PackageModel(path="package:no_such_package").block_count() is None


def test_nested_arrays_without_end_are_no_error(tmp_path: Path) -> None:
    file = tmp_path / "m.gguf"
    file.write_bytes(_with_blocks_behind(struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000))
    assert blocks_in_gguf(file) is None
