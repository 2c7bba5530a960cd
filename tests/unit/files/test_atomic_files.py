"""Files that are whole or not there."""

from __future__ import annotations

import fcntl
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.atomic_files import alone, whole_folder, write_whole, writing

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


def test_a_link_in_the_place_of_a_file_or_folder_is_replaced_and_not_followed(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / "file").write_text("theirs")
    (tmp_path / "file").symlink_to(there / "file")
    (tmp_path / "folder").symlink_to(there, target_is_directory=True)
    write_whole(tmp_path / "file", "ours")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "file").write_text("ours")
    assert (there / "file").read_text() == "theirs"
    for name in ("file", "folder"):
        assert not (tmp_path / name).is_symlink()


def test_what_someone_else_put_under_a_name_beside_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("theirs")
    given = iter(["aaaa", "bbbb", "cccc"])
    monkeypatch.setattr(secrets, "token_hex", lambda _bytes: next(given))
    (tmp_path / ".plan.json.aaaa.part").symlink_to(theirs)
    (tmp_path / ".plan.json.bbbb.part").mkdir()
    (tmp_path / ".plan.json.bbbb.part" / "kept").write_text("x")
    with _locked(tmp_path / ".plan.json.bbbb.part"):
        write_whole(tmp_path / "plan.json", "ours")
    assert (theirs.read_text(), (tmp_path / "plan.json").read_text()) == ("theirs", "ours")


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def test_what_a_killed_writer_left_goes_and_what_another_one_works_on_stays(tmp_path: Path) -> None:
    for name in (".plan.json.dead.part", ".plan.json.alive.part", ".other.json.dead.part"):
        (tmp_path / name).write_text("half")
    (tmp_path / ".plan.json.folder.part" / "inner").mkdir(parents=True)
    with _locked(tmp_path / ".plan.json.alive.part"):
        write_whole(tmp_path / "plan.json", "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", ".plan.json.alive.part", ".other.json.dead.part"}


def test_names_of_any_length_and_alphabet_can_be_written(tmp_path: Path) -> None:
    for name in ("x" * 255, "\u00e4" * 127, "a[b]*?.json", "with\nnewline"):
        assert write_whole(tmp_path / name, name).read_text() == name
        with whole_folder(tmp_path / f"{name[:-1]}~") as folder:
            (folder / "file").write_text(name)
    assert len(list(tmp_path.iterdir())) == 8


def test_files_have_the_mode_that_the_umask_gives(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        file = write_whole(tmp_path / "plan.json", "x")
        with whole_folder(tmp_path / "decode"):
            pass
    finally:
        os.umask(before)
    assert (file.stat().st_mode & 0o777, (tmp_path / "decode").stat().st_mode & 0o777) == (0o640, 0o750)


def test_one_at_a_time_makes_a_thing_and_the_others_wait(tmp_path: Path) -> None:
    thing, order, waited = tmp_path / "thing", [], []

    def make(name: str) -> None:
        with alone(thing, lambda: waited.append(name)):
            order.append(f"{name} begins")
            time.sleep(0.05)
            order.append(f"{name} ends")

    threads = [threading.Thread(target=make, args=(str(number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(waited) >= 1
    assert [line.split()[1] for line in order] == ["begins", "ends"] * 4
    assert all(one.split()[0] == two.split()[0] for one, two in zip(order[::2], order[1::2], strict=True))
    assert not list(tmp_path.iterdir())


PROGRAM = """
import os, sys, time
from pathlib import Path
from pdtrim_core.files.atomic_files import alone, whole_folder, write_whole

place, me, slow = Path(sys.argv[1]), sys.argv[2], os.fsync
def fsync(descriptor):
    time.sleep(0.01)
    slow(descriptor)
os.fsync = fsync
for number in range(12):
    text = f"{me} round-{number} " * 20_000
    write_whole(place / "file", text)
    words = (place / "file").read_text().split()
    assert len(words) == 40_000 and len(set(words)) == 2, "a file in parts"
    with whole_folder(place / "folder") as folder:
        for name in "ab":
            (folder / name).write_text(text)
    with alone(place / "count"):
        count = place / "count"
        before = int(count.read_text()) if count.exists() else 0
        time.sleep(0.002)
        count.write_text(str(before + 1))
"""


def test_eight_processes_with_a_slow_disk_write_the_same_names_and_each_file_is_whole(tmp_path: Path) -> None:
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path), str(number)], stderr=subprocess.PIPE, text=True)
        for number in range(8)
    ]
    said = [process.communicate(timeout=120)[1] for process in running]
    assert not any(process.returncode for process in running), "\n".join(said)
    assert {path.name for path in tmp_path.iterdir()} == {"file", "folder", "count"}
    assert (tmp_path / "folder" / "a").read_text() == (tmp_path / "folder" / "b").read_text()
    assert (tmp_path / "count").read_text() == str(8 * 12)


def test_a_writer_that_is_killed_leaves_nothing_for_the_next_one(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from pdtrim_core.files.atomic_files import write_whole;"
        "os.fsync = lambda descriptor: os.kill(os.getpid(), signal.SIGKILL); write_whole(Path(sys.argv[1]), 'half')"
    )
    file = write_whole(tmp_path / "plan.json", "old")
    for _ in range(2):
        subprocess.run([sys.executable, "-c", program, str(file)], check=False)
        assert file.read_text() == "old"
        assert len(list(tmp_path.iterdir())) == 2
    write_whole(file, "new")
    assert [path.read_text() for path in tmp_path.iterdir()] == ["new"]
