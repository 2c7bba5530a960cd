"""The number formats of a checkpoint's tensors, whatever format they are computed with."""

from __future__ import annotations

import re
from collections.abc import Mapping

NUMBER = re.compile(r"(?<=\.)\d+(?=\.|$)")


def pattern_of(name: str) -> str:
    """Return the name of a tensor with `*` in place of the numbers of blocks and experts."""
    return NUMBER.sub("*", name)


def stored_as(name: str, dtypes: Mapping[str, str]) -> str | None:
    """Return the number format of a tensor; None where nothing is known.

    Checkpoints may leave out the first part of all names, so one that ends like a known name has its format.
    """
    wanted = pattern_of(name)
    for known, dtype in dtypes.items():
        if known and (f".{wanted}".endswith(f".{known}") or f".{known}".endswith(f".{wanted}")):
            return dtype
    return dtypes.get("")
