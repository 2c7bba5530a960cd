"""Reading within limits: whatever a file holds or is, there is data or one short reason."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files import reading
from pdtrim_core.files.reading import (
    UnreadableError,
    parse_json,
    parse_toml,
    problem_in,
    read_bytes,
    read_json,
    read_lines,
    read_text,
    read_toml,
)
from tests.unit.examples import given

DEEP = reading.TOO_DEEP
BEYOND = "a whole number beyond 64 bits"
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
DATA = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63) + 1, 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)


@given(DATA)
def test_json_within_the_limits_is_read_as_it_is(data: Any) -> None:
    assert parse_json(json.dumps(data)) == data
    assert parse_json(json.dumps(data, ensure_ascii=False).encode()) == data
    assert problem_in(data) is None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("[" * 66 + "]" * 66, DEEP),
        ("[" * 100_000, DEEP),
        ('{"a":' * 100_000, DEEP),
        ("9" * 5000, BEYOND),
        ("9223372036854775808", BEYOND),
        ('[1, {"a": -1e999}]', "a number that is not finite"),
        ("[NaN]", "NaN, which is no number"),
        ("-Infinity", "-Infinity, which is no number"),
        ('"a\\u0000b"', "a text with the character NUL"),
        ('{"\\u0000": 1}', "a text with the character NUL"),
        ('["\\ud800"]', "a text with half a surrogate pair"),
        ('{"\\udfff": 1}', "a text with half a surrogate pair"),
        ("[" + "[]," * 2_000_000 + "1]", "more than 2,000,000 values"),
        (b"\xff\xfe", "not text in UTF-8 (byte 0)"),
        ('"\x00"', "Invalid control character at: line 1 column 2 (char 1)"),
        ("", "Expecting value: line 1 column 1 (char 0)"),
    ],
    ids=range(16),
)
def test_json_beyond_a_limit_has_a_reason(text: str | bytes, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_json(text)
    assert str(caught.value) == caught.value.reason == reason
    assert caught.value.syntax == ("char" in reason and "character NUL" not in reason)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a = " + "[" * 5000, DEEP),
        ("a = " + "[" * 66 + "]" * 66, DEEP),
        ("a = " + "{a = " * 5000, DEEP),
        ("a" + ".a" * 5000 + " = 1", "a key of more than 64 parts"),
        ("[" + '"a b" . ' * 5000 + "a]", "a key of more than 64 parts"),
        ("".join(f"[a{'.a' * depth}]\n" for depth in range(60, 64)) + "a" + ".a" * 40 + " = 1", DEEP),
        ("a = " + "1" * 5000, BEYOND),
        ("a = 0x" + "f" * 5000, BEYOND),
        ('a = "\\u0000"', "a text with the character NUL"),
        ('"\\u0000" = 1', "a text with the character NUL"),
        ("a = ", "Invalid value (at end of document)"),
        ("a = 1\n" * 250_000, "larger than 1 MB"),
        ("a = [" + "1," * 30_000 + "]", "more than 20,000 values"),
    ],
    ids=range(13),
)
def test_toml_beyond_a_limit_has_a_reason(text: str, reason: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        parse_toml(text, "r.toml")
    assert caught.value.reason == reason
    assert str(caught.value) == f"r.toml cannot be read ({reason})"


@pytest.mark.parametrize(
    "text",
    [
        "a" * 990_000,
        '"' * 990_000,
        "a." * 495_000,
        '"a".' * 240_000,
        "\n".join(f"[k{number}{'.a' * 62}]" for number in range(3000)),
        "\n".join(f"k{number}{'.a' * 62} = 1" for number in range(3000)),
        "a = [" + "[]," * 300_000,
        "#" * 990_000,
    ],
    ids=range(8),
)
def test_toml_takes_no_longer_than_its_length_allows(text: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(UnreadableError):
        parse_toml(text)
    assert time.process_time() - begun < 5


def test_toml_may_have_what_json_may_not() -> None:
    assert parse_toml("a = inf\nb = 1979-05-27\n'c.d' = 1\ne.f = ['x.y.z']").keys() == {"a", "b", "c.d", "e"}


def test_data_that_contain_themselves_are_too_deep() -> None:
    once: list[Any] = []
    once.append(once)
    assert problem_in(once) == DEEP
    twice: list[Any] = []
    twice += [twice, twice]
    assert problem_in(twice) == reading.TOO_MANY
    assert problem_in({1: 2}) == "a key that is no text"
    assert problem_in([float("inf")]) == "a number that is not finite"
    assert problem_in([float("inf")], finite=False) is None


def test_lines_come_with_their_numbers_and_without_their_ends(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_bytes(b'{"a": 1}\r\n\n  \n[2]\n3')
    assert list(read_lines(path)) == [(1, b'{"a": 1}'), (2, b""), (3, b"  "), (4, b"[2]"), (5, b"3")]
    path.write_bytes(b"")
    assert list(read_lines(path)) == []


def test_a_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "long"
    path.write_bytes(b"x" * 1000)
    assert read_bytes(path, 1000) == b"x" * 1000
    with pytest.raises(UnreadableError, match=r"long cannot be read \(larger than 0 MB\)$"):
        read_bytes(path, 999)
    monkeypatch.setattr(reading, "LINE_BYTES", 999)
    with pytest.raises(UnreadableError, match=r"long, line 1 cannot be read \(longer than 0 MB\)$"):
        list(read_lines(path))


def test_a_hole_of_a_terabyte_takes_neither_time_nor_memory(tmp_path: Path) -> None:
    path = tmp_path / "hole"
    with path.open("wb") as file:
        file.truncate(2**40)
    for read in (read_toml, read_json, lambda path: list(read_lines(path))):
        with pytest.raises(UnreadableError, match=r"(larger|longer) than \d+ MB"):
            read(path)


@pytest.mark.parametrize("read", [read_bytes, read_text, read_toml, read_json, lambda path: list(read_lines(path))])
def test_only_regular_files_are_read(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, reason in {
        tmp_path: "it is a folder",
        tmp_path / "pipe": "it is no regular file",
        Path("/dev/zero"): "it is no regular file",
        tmp_path / "loop": "Too many levels of symbolic links",
        tmp_path / ("a" * 5000): "File name too long",
        tmp_path / "a\0b": "its name is none that a file can have",
        Path(__file__) / "x": "Not a directory",
    }.items():
        with pytest.raises(UnreadableError) as caught:
            read(path)
        assert caught.value.reason == reason
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none")


def test_text_that_is_none_is_told_by_its_place(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"abc\xe4")
    with pytest.raises(PdtrimError) as caught:
        read_text(path)
    assert str(caught.value) == f"{path} is not text in UTF-8 (byte 3)"
    path.write_bytes("ä\r\nb\rc".encode())
    assert read_text(path) == "ä\nb\nc"


def test_the_largest_json_fits_in_a_gigabyte() -> None:
    code = (
        "from pdtrim_core.files.reading import parse_json\nimport resource, pathlib\n"
        "parse_json('[' + '{\"\":{}},' * 660_000 + '1]')\nparse_json('[' + '[],' * 990_000 + '1]')\n"
        # On Linux a process is told the peak of the one that started it, where that was higher; its own memory map has its own.
        "status = pathlib.Path('/proc/self/status')\n"
        "lines = status.read_text().splitlines() if status.is_file() else []\n"
        "own = [line.split()[1] for line in lines if line.startswith('VmHWM')]\n"
        "print(own[0] if own else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    unit = 1 if sys.platform == "darwin" else 1024
    assert int(done.stdout) * unit < 10**9
