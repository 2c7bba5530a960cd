"""Files and texts that others may have written, read within limits: text, TOML, JSON, JSON lines.

Whatever is in a file, reading it takes bounded time and memory, and what cannot be had is an `UnreadableError` that says why in a
few words. Texts in what is returned hold no NUL and no lone surrogate, which no system call and no encoder takes; whole numbers
fit in 64 bits, and JSON's numbers are finite.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, TypeVar

import tomli

from pdtrim_core.errors import PdtrimError
from pdtrim_core.files.paths import PathLike

T = TypeVar("T")

TOML_BYTES = 1_000_000
"""Bytes of a TOML file at most."""
JSON_BYTES = 32_000_000
"""Bytes of a JSON file at most."""
LINE_BYTES = 16_000_000
"""Bytes of one line at most, in a file that is read line by line."""
TEXT_BYTES = 64_000_000
"""Bytes at most of a file of plain text or of JSON lines: what is made of it takes ten times as many."""
DEPTH = 64
"""Lists and tables inside each other at most, and parts of a dotted key."""
VALUES = 2_000_000
"""Values in one text at most: an empty list takes 2 bytes of a file and 64 of memory."""
TOML_VALUES = 20_000
"""Values in TOML at most: people write it, and each value that is wrong becomes an error of its own."""
LARGEST_INTEGER = 2**63 - 1

FOLDER = "it is a folder"
TOO_DEEP = f"nested deeper than {DEPTH} levels"
TOO_MANY = f"more than {VALUES:,} values"
_SURROGATE = re.compile("[\ud800-\udfff]")
# tomli's time grows with the square of a key's parts. They are looked for where no part goes on, so that each is met once.
_LONG_KEY = re.compile(rf"""(?<![\w-])(?:(?:[A-Za-z0-9_-]++|"[^"\n]*+"|'[^'\n]*+')[ \t]*+\.[ \t]*+){{{DEPTH},}}""")


class UnreadableError(PdtrimError):
    """A file or text that cannot be read; `reason` says why in a few words, for a sentence of its reader.

    `syntax` tells that it is not in its format at all, in the words of the parser, whose error is the `__cause__`.
    """

    def __init__(self, reason: str, where: PathLike = "", *, syntax: bool = False) -> None:
        self.reason = reason
        self.syntax = syntax
        said = f"is {reason}" if reason.startswith("not ") else f"cannot be read ({reason})"
        super().__init__(f"{where} {said}" if where else reason)


def open_regular(path: PathLike) -> BufferedReader:
    """Open a file to read its bytes.

    Raises `FileNotFoundError` where there is nothing, and `UnreadableError` for what has no end or may never answer: a folder, a
    pipe, a device.
    """
    try:
        # Before it is opened: opening a pipe waits until someone writes to it.
        mode = Path(path).stat().st_mode
        if stat.S_ISDIR(mode):
            raise UnreadableError(FOLDER, path)
        if not stat.S_ISREG(mode):
            raise UnreadableError("it is no regular file", path)
        return Path(path).open("rb")
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(error.strerror or str(error), path) from error
    except ValueError:
        # Python's own check of a name with a NUL or a surrogate in it.
        raise UnreadableError("its name is none that a file can have", path) from None


def read_bytes(path: PathLike, most: int = TEXT_BYTES) -> bytes:
    """Return the content of a regular file of at most so many bytes; raises as `open_regular` does."""
    with open_regular(path) as file:
        try:
            # Where the system tells no size, as of what it makes up itself, reading stops at the limit.
            content = b"" if os.fstat(file.fileno()).st_size > most else file.read(most + 1)
            beyond = len(content) > most or os.fstat(file.fileno()).st_size > most
        except OSError as error:
            raise UnreadableError(error.strerror or str(error), path) from error
    if beyond:
        raise UnreadableError(f"larger than {_size(most)}", path)
    return content


def read_text(path: PathLike, most: int = TEXT_BYTES) -> str:
    r"""Return the text of a regular file in UTF-8, with \n at the end of lines; raises as `open_regular` does."""
    return _text_of(read_bytes(path, most), path).replace("\r\n", "\n").replace("\r", "\n")


def read_toml(path: PathLike) -> dict[str, Any]:
    """Return the data of a TOML file; raises as `open_regular` does."""
    return parse_toml(read_text(path, TOML_BYTES), path)


def parse_toml(text: str, where: PathLike = "") -> dict[str, Any]:
    """Return the data of TOML text. Raises `UnreadableError`, with `where` as the place if one is given.

    Numbers may be infinite or none, as TOML has it.
    """
    if len(text) > TOML_BYTES:
        raise UnreadableError(f"larger than {_size(TOML_BYTES)}", where)
    if _LONG_KEY.search(text):
        raise UnreadableError(f"a key of more than {DEPTH} parts", where)
    try:
        data = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UnreadableError(str(error), where, syntax=True) from error
    except RecursionError:
        raise UnreadableError(TOO_DEEP, where) from None
    except ValueError:
        # Python's limit on the digits of a number.
        raise UnreadableError("a whole number beyond 64 bits", where) from None
    return _within_limits(data, where, finite=False, most=TOML_VALUES)


def read_json(path: PathLike) -> Any:
    """Return the data of a JSON file; raises as `open_regular` does."""
    return parse_json(read_bytes(path, JSON_BYTES), path)


def parse_json(text: str | bytes, where: PathLike = "", most: int = JSON_BYTES) -> Any:
    """Return the data of JSON text. Raises `UnreadableError`, with `where` as the place if one is given."""
    if len(text) > most:
        raise UnreadableError(f"larger than {_size(most)}", where)
    text = _text_of(text, where) if isinstance(text, bytes) else text
    if sum(map(text.count, ",[{")) > VALUES:
        raise UnreadableError(TOO_MANY, where)
    try:
        data = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise UnreadableError(str(error), where, syntax=True) from error
    except RecursionError:
        raise UnreadableError(TOO_DEEP, where) from None
    except ValueError:
        raise UnreadableError("a whole number beyond 64 bits", where) from None
    except _NotFiniteError as error:
        raise UnreadableError(str(error), where) from None
    return _within_limits(data, where, finite=True)


def read_lines(path: PathLike) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a regular file with their numbers from 1 on, without their ends; raises as `open_regular` does."""
    read = 0
    with open_regular(path) as file:
        number = 0
        while line := file.readline(LINE_BYTES + 1):
            number, read = number + 1, read + len(line)
            if len(line) > LINE_BYTES:
                raise UnreadableError(f"longer than {_size(LINE_BYTES)}", f"{path}, line {number}")
            if read > TEXT_BYTES:
                raise UnreadableError(f"larger than {_size(TEXT_BYTES)}", path)
            yield number, line.rstrip(b"\r\n")


def problem_in(data: Any, *, finite: bool = True, most: int = VALUES) -> str | None:
    """Return what is beyond the limits in data of dictionaries, lists and plain values; None where nothing is.

    With `finite`, numbers must be. It goes level by level, for data may be nested as deep as no recursion goes.
    """
    level, seen = [data], 0
    for _ in range(DEPTH + 1):
        inner: list[Any] = []
        for value in level:
            if isinstance(value, dict):
                inner += value.values()
                problem = next((found for key in value if (found := _wrong_key(key))), None)
            elif isinstance(value, list | tuple):
                inner += value
                problem = None
            else:
                problem = _wrong_value(value, finite=finite)
            if problem:
                return problem
            if seen + len(inner) > most:
                return f"more than {most:,} values"
        if not inner:
            return None
        level, seen = inner, seen + len(inner)
    return TOO_DEEP


def _within_limits(data: T, where: PathLike, *, finite: bool, most: int = VALUES) -> T:
    problem = problem_in(data, finite=finite, most=most)
    if problem:
        raise UnreadableError(problem, where)
    return data


def _wrong_key(key: object) -> str | None:
    return _wrong_text(key) if isinstance(key, str) else "a key that is no text"


def _wrong_value(value: object, *, finite: bool) -> str | None:
    if isinstance(value, str):
        return _wrong_text(value)
    if isinstance(value, int) and not -LARGEST_INTEGER <= value <= LARGEST_INTEGER:
        return "a whole number beyond 64 bits"
    if finite and isinstance(value, float) and not math.isfinite(value):
        return "a number that is not finite"
    return None


def _wrong_text(text: str) -> str | None:
    if "\0" in text:
        return "a text with the character NUL"
    return "a text with half a surrogate pair" if not text.isascii() and _SURROGATE.search(text) else None


def _text_of(content: bytes, where: PathLike) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UnreadableError(f"not text in UTF-8 (byte {error.start})", where) from error


class _NotFiniteError(Exception):
    """NaN or an infinity in JSON."""


def _refuse(name: str) -> float:
    raise _NotFiniteError(f"{name}, which is no number")


def _size(count: int) -> str:
    return f"{count // 10**6} MB"
