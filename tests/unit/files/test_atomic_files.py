"""Files that are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import whole_folder, write_whole, writing

KEPT = "; what was measured before is kept: mend this and run the same command again"


def test_a_file_is_written_and_its_path_returned(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    assert write_whole(file, "gr\u00fc\u00df\n") == file
    assert file.read_bytes() == "gr\u00fc\u00df\n".encode()
    assert write_whole(file, "new").read_text() == "new"
    assert list(tmp_path.iterdir()) == [file]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_whole(tmp_path / "plan.json", "old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PdtrimError) as caught:
        write_whole(file, "new")
    assert str(caught.value) == f"cannot write {file}: No space left on device{KEPT}"
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_crash_while_writing_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write_whole(tmp_path / "plan.json", "old")

    def interrupt(_descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_whole(file, "new")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_text_that_cannot_be_written_leaves_the_old_file(tmp_path: Path) -> None:
    file = write_whole(tmp_path / "plan.json", "old")
    with pytest.raises(UnicodeEncodeError):
        write_whole(file, "\ud800")
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    file = tmp_path / "gone" / "plan.json"
    with pytest.raises(PdtrimError) as caught:
        write_whole(file, "x")
    assert str(caught.value) == f"cannot write {file}: No such file or directory{KEPT}"


def test_a_folder_in_the_place_of_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "plan.json"
    file.mkdir()
    with pytest.raises(PdtrimError) as caught:
        write_whole(file, "x")
    assert str(caught.value) == f"cannot write {file}: Is a directory{KEPT}"
    assert list(tmp_path.iterdir()) == [file]


def test_other_errors_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), writing(tmp_path):
        raise ZeroDivisionError


def test_a_folder_takes_its_name_when_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "exports" / "decode"
    for text in ("old", "new"):
        with whole_folder(path) as folder:
            (folder / "inner").mkdir()
            (folder / "inner" / "config.json").write_text(text)
            assert folder != path
            assert path.exists() is (text == "new")
        assert (path / "inner" / "config.json").read_text() == text
        assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_fails_leaves_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "decode"
    with whole_folder(path) as folder:
        (folder / "config.json").write_text("old")
    for error in (OSError(28, "No space left on device"), KeyboardInterrupt()):
        with pytest.raises((PdtrimError, KeyboardInterrupt)) as caught:
            _fail_inside(path, error)
        assert (path / "config.json").read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
        if isinstance(caught.value, PdtrimError):
            assert str(caught.value) == f"cannot write {path}: No space left on device{KEPT}"


def _fail_inside(path: Path, error: BaseException) -> None:
    with whole_folder(path) as folder:
        (folder / "config.json").write_text("half")
        raise error


def test_a_folder_that_was_between_its_two_names_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "decode"
    before = tmp_path / ".decode.before"
    before.mkdir()
    (before / "config.json").write_text("old")
    with pytest.raises(ZeroDivisionError), whole_folder(path):
        _ = 1 / 0
    assert (path / "config.json").read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_where_nothing_can_be_written_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(PdtrimError, match=r"cannot write .*file/decode: Not a directory"),
        whole_folder(tmp_path / "file" / "decode"),
    ):
        pass
