"""A folder's checksums notice whatever happened to its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core.files.checksums import MANIFEST, damaged, write_manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "inner").mkdir()
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "inner" / "weights").write_bytes(bytes(range(256)) * 100)
    write_manifest(tmp_path)
    return tmp_path


def test_a_sound_folder_has_no_damaged_files(folder: Path) -> None:
    assert damaged(folder) == []


@pytest.mark.parametrize("bit", [0, 7, 8 * 12_345 + 3, 8 * 25_600 - 1])
def test_one_wrong_bit_is_noticed(bit: int, folder: Path) -> None:
    data = bytearray((folder / "inner" / "weights").read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    (folder / "inner" / "weights").write_bytes(data)
    assert damaged(folder) == ["inner/weights"]
    assert damaged(folder, only=["config.json"]) == []


def test_a_file_that_is_gone_shorter_or_new_is_noticed(folder: Path) -> None:
    (folder / "config.json").unlink()
    (folder / "inner" / "weights").write_bytes(b"")
    (folder / "inner" / "more").write_text("")
    assert damaged(folder) == ["config.json", "inner/more", "inner/weights"]


@pytest.mark.parametrize(
    "content", ["", "[]", "{", "3", "\x00", "{}", "[" * 200_000, '{"a": ' * 200_000, "9" * 5000, '{"a": NaN}', '{"a": "\\u0000"}']
)
def test_checksums_that_cannot_be_read_are_damaged_themselves(content: str, folder: Path) -> None:
    (folder / MANIFEST).write_text(content)
    assert damaged(folder) == [MANIFEST]


def test_no_checksums_and_no_folder_are_no_proof(folder: Path) -> None:
    assert damaged(folder / "nowhere") == [MANIFEST]
    (folder / MANIFEST).unlink()
    assert damaged(folder) == [MANIFEST]


def test_checksums_that_are_a_folder_or_no_text_are_damaged_themselves(folder: Path) -> None:
    (folder / MANIFEST).write_bytes(b"\xff\xfe")
    assert damaged(folder) == [MANIFEST]
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).mkdir()
    assert damaged(folder) == [MANIFEST]
    assert damaged(folder, only=["config.json"]) == [MANIFEST]


def test_writing_checksums_again_takes_what_is_there_now(folder: Path) -> None:
    (folder / "config.json").write_text("{ }")
    assert damaged(folder) == ["config.json"]
    write_manifest(folder)
    assert damaged(folder) == []
