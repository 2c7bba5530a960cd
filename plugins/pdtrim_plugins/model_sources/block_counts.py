"""How many blocks the files of a model say that it has: read within milliseconds, since nothing heavy is imported."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")
"""The names that families have for it in a config of transformers."""
LARGEST = 2**20
"""Bytes of a config, and of one text of a GGUF file, that are read at most."""
SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""The types of GGUF's values by their numbers, as struct names them."""
TEXT, ARRAY = 8, 9
LONGEST = 256
"""Entries of an array that is passed by, such as the languages of a model; one per block has fewer, a vocabulary more."""


def blocks_in_config(file: Path) -> int | None:
    """Return the number of blocks in a config.json; None where there is none, or where it is not one number."""
    try:
        with file.open("rb") as opened:
            config = json.loads(opened.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None  # whoever opens the model says what is wrong
    if not isinstance(config, dict):
        return None
    inner = config.get("text_config")
    found = {table[key] for table in (config, inner) if isinstance(table, dict) for key in KEYS if _is_count(table.get(key))}
    return found.pop() if len(found) == 1 else None


def blocks_in_gguf(file: Path) -> int | None:
    """Return the number of blocks in the values that a GGUF file begins with; None where it is not among them."""
    try:
        with file.open("rb") as opened:
            if opened.read(4) != b"GGUF":
                return None
            _, _, count = struct.unpack("<IQQ", opened.read(20))
            for _ in range(count):
                name = _text(opened)
                value = _value(opened, *struct.unpack("<I", opened.read(4)))
                if name.endswith(b".block_count"):
                    return value if _is_count(value) else None
    except (OSError, struct.error, RecursionError):
        return None  # whoever opens the model says what is wrong
    return None


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _text(opened: BinaryIO) -> bytes:
    (length,) = struct.unpack("<Q", opened.read(8))
    if length > LARGEST:
        raise struct.error("a text longer than any name")
    return opened.read(length)


def _value(opened: BinaryIO, kind: int) -> Any:
    """Return the value that comes next; of an array nothing, once it is passed."""
    if kind == ARRAY:
        inner, length = struct.unpack("<IQ", opened.read(12))
        if length > LONGEST:
            raise struct.error("the vocabulary, which stands behind what the model is")
        for _ in range(length):
            _value(opened, inner)
        return None
    if kind == TEXT:
        return _text(opened)
    if kind not in SCALARS:
        raise struct.error("no type of GGUF")
    form = f"<{SCALARS[kind]}"
    return struct.unpack(form, opened.read(struct.calcsize(form)))[0]
