"""Figures of other authors' code on the real 135M model; `tests/data/README.md` says whose, and how to remake them.

The texts that they are over are not here: they are sentences of the Python reference, which the interpreter brings with it.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "data" / "reference"


def reference(name: str) -> Any:
    """Return the figures of one file."""
    return json.loads((FOLDER / f"{name}.json").read_text())


def sentences() -> list[str]:
    """Return the forty sentences that all figures are over; skip the test where this Python's reference says other things."""
    from pydoc_data.topics import topics

    found = reference("texts")
    plain = {topic: " ".join(re.sub(r'[*"`]', "", topics.get(topic, "")).split()) for topic, _, _ in found["sentences"]}
    texts = [plain[topic][start : start + length] for topic, start, length in found["sentences"]]
    if hashlib.sha256("\n\n".join(texts).encode()).hexdigest() != found["sha256"]:
        pytest.skip("the figures are over sentences of the Python 3.11 reference, and this interpreter has another one")
    return texts


def reference_texts(tokenizer: Any) -> list[list[int]]:
    """Return the token ids of the forty sentences, one by one."""
    return [tokenizer(text)["input_ids"] for text in sentences()]


def reference_text(tokenizer: Any) -> list[int]:
    """Return the token ids of the same sentences as one text, with an empty line between two of them."""
    ids: list[int] = tokenizer("\n\n".join(sentences()))["input_ids"]
    return ids
