"""Figures of other authors' code on the real 135M model; `tests/data/README.md` says whose, and how to remake them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "data" / "reference"


def reference(name: str) -> Any:
    """Return the figures of one file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def reference_texts() -> list[list[int]]:
    """Return the token ids of the forty sentences that all figures are over, one by one."""
    texts: list[list[int]] = reference("texts")["each"]
    return texts


def reference_text() -> list[int]:
    """Return the token ids of the same sentences as one text, with an empty line between two of them."""
    text: list[int] = reference("texts")["joined"]
    return text
