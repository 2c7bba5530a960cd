"""GGUF files read quickly: transformers parses a file three times over, one numpy array a token of the vocabulary.

What is read is the same to the last bit. transformers takes what it needs from the package gguf whenever it reads a file, so
quicker forms of three names stand there meanwhile; a release that takes them from elsewhere is slower and no less right.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

AT_ONCE = 2**17
"""Stored bytes that are dequantised at once: what is made of them on the way stays in a processor's cache."""
LENGTH = struct.Struct("=Q")
ARRAY_HEAD = struct.Struct("=IQ")
Field = tuple[int, list[Any], list[int], list[Any]]
"""What gguf's reader makes of a value: its bytes, its parts, which of them are entries, their types."""


@contextmanager
def quick_gguf() -> Iterator[None]:
    """Read a GGUF file once however often it is asked for, and dequantise in parts that suit a processor's cache.

    Inside another such context nothing changes: what the outer one has read is used again.
    """
    import gguf  # noqa: PLC0415 - listings do without

    if not isinstance(gguf.GGUFReader, type):
        yield
        return
    quick = {
        "GGUFReader": cache(_quick_reader(gguf)),
        "get_tensor_name_map": cache(gguf.get_tensor_name_map),
        "dequantize": _in_parts(gguf.dequantize),
    }
    before = {name: getattr(gguf, name) for name in quick}
    try:
        vars(gguf).update(quick)
        yield
    finally:
        vars(gguf).update(before)


def _quick_reader(gguf: Any) -> Any:
    """Return gguf's reader with arrays read by themselves: its own makes several views of a mapped file for each entry."""
    scalars: dict[int, Any] = dict(gguf.GGUFReader.gguf_scalar_to_np)
    slow: Callable[..., Field] = gguf.GGUFReader._get_field_parts  # noqa: SLF001 - it has no public name
    array, text = gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING

    def _get_field_parts(self: Any, start: int, kind: int) -> Field:
        # A file of the other byte order, and arrays of arrays, are left to gguf.
        if kind != array or self.byte_order != "I":
            return slow(self, start, kind)
        data = memoryview(self.data)
        parts: list[Any]
        inner, count = ARRAY_HEAD.unpack_from(data, start)
        place = start + ARRAY_HEAD.size
        if inner == text:
            parts, end = _texts(data, place, count)
        elif inner in scalars:
            numbers = np.frombuffer(data, scalars[inner], count, place)
            parts, end = [numbers[index : index + 1] for index in range(count)], place + numbers.nbytes
        else:
            return slow(self, start, kind)
        types = [array, gguf.GGUFValueType(inner)] if count else [array]
        return end - start, parts, list(range(count)), types

    return type("QuickReader", (gguf.GGUFReader,), {"_get_field_parts": _get_field_parts})


def _texts(data: memoryview, place: int, count: int) -> tuple[list[Any], int]:
    """Return so many texts that stand one behind the other, each behind its length, and where they end."""
    texts = []
    for _ in range(count):
        (length,) = LENGTH.unpack_from(data, place)
        place += LENGTH.size + length
        if place > len(data):
            raise ValueError("the file ends within its vocabulary")
        texts.append(data[place - length : place])
    return texts, place


def _in_parts(dequantize: Callable[..., NDArray[Any]]) -> Callable[..., NDArray[Any]]:
    """Return a dequantisation that works on some rows at a time. Each block of a row stands by itself, so no bit changes."""

    def quick(data: NDArray[Any], kind: Any) -> NDArray[Any]:
        rows = data.reshape(-1, data.shape[-1])
        step = max(1, AT_ONCE // max(1, rows.shape[-1] * rows.itemsize))
        if len(rows) <= step or data.dtype != np.uint8:
            return dequantize(data, kind)
        found: NDArray[Any] | None = None
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            # As a single row, since gguf goes through 16 rows at a time whatever their length.
            floats = dequantize(part.reshape(1, -1), kind).reshape(len(part), -1)
            if found is None:
                found = np.empty((len(rows), floats.shape[-1]), floats.dtype)
            found[start : start + step] = floats
        assert found is not None
        return found.reshape(*data.shape[:-1], -1)

    return quick
