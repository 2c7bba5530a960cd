"""The table of tensors at the beginning of a GGUF file, read by itself: the package gguf takes seconds for a vocabulary."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

FLOAT, STRING, ARRAY = 6, 8, 9
WIDTHS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by the number of its type, for those of one width."""
ARCHITECTURE = "general.architecture"
SCALING = ".rope.scal"
"""What the names of values that scale rotary embeddings have in them; older files have .rope.scale_linear."""


@dataclass(frozen=True)
class Table:
    """What a file says of itself: its architecture, the names of its values, those that scale rotary embeddings, its tensors.

    `shapes` are those of the tensors, the fastest dimension last.
    """

    architecture: str
    keys: frozenset[str]
    scaling: dict[str, str | float]
    shapes: dict[str, tuple[int, ...]]


def table_of(file: Path) -> Table:
    """Return the table of tensors of a GGUF file. Raises `ValueError` for one that ends early or has types of its own."""
    with file.open("rb") as opened:
        head = _Head(opened)
        opened.seek(4)
        version, tensors, values = head.numbers("IQQ")
        if not 2 <= version <= 3:
            raise ValueError(f"its version is {version}, and 2 and 3 are known")
        architecture = ""
        keys: set[str] = set()
        scaling: dict[str, str | float] = {}
        for _ in range(values):
            key, (kind,) = head.text(), head.numbers("I")
            keys.add(key)
            if key == ARCHITECTURE and kind == STRING:
                architecture = head.text()
            elif SCALING in key and kind == STRING:
                scaling[key] = head.text()
            elif SCALING in key and kind == FLOAT:
                (scaling[key],) = head.numbers("f")
            else:
                head.skip(kind)
        return Table(architecture, frozenset(keys), scaling, dict(head.tensor() for _ in range(tensors)))


class _Head:
    """Reads what stands before the tensors."""

    def __init__(self, opened: BinaryIO) -> None:
        self._opened = opened
        self._size = opened.seek(0, 2)

    def numbers(self, form: str) -> tuple[Any, ...]:
        return struct.unpack(f"<{form}", self._bytes(struct.calcsize(f"<{form}")))

    def text(self) -> str:
        (length,) = self.numbers("Q")
        return self._bytes(length).decode("utf-8", "replace")

    def skip(self, kind: int) -> None:
        """Pass over a value."""
        if kind == ARRAY:
            inner, count = self.numbers("IQ")
            if inner in WIDTHS:
                self._bytes(WIDTHS[inner] * count)
                return
            for _ in range(count):
                self.skip(inner)
        elif kind == STRING:
            (length,) = self.numbers("Q")
            self._bytes(length)
        elif kind in WIDTHS:
            self._bytes(WIDTHS[kind])
        else:
            raise ValueError(f"it has a value of the unknown type {kind}")

    def tensor(self) -> tuple[str, tuple[int, ...]]:
        """Return the name and the shape of a tensor."""
        name, (dimensions,) = self.text(), self.numbers("I")
        if dimensions > 8:
            raise ValueError(f"its tensor {name} has {dimensions} dimensions")
        shape = self.numbers(f"{dimensions}Q")
        self.numbers("IQ")  # its type and its place
        return name, tuple(reversed(shape))

    def _bytes(self, count: int) -> bytes:
        found = self._opened.read(count) if count <= self._size else b""
        if len(found) < count:
            raise ValueError("it ends before its table of tensors does")
        return found
