"""The figures under `tests/data/reference`: each file is described, and the texts are those that they are over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.reference import FOLDER, reference_text, reference_texts

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel


def test_every_file_of_figures_is_described_and_none_else() -> None:
    described = re.findall(r"^\| `(\w+\.json)` ", (FOLDER.parent / "README.md").read_text(), re.MULTILINE)
    assert sorted([*described, "texts.json"]) == sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.model
def test_the_sentences_have_as_many_tokens_as_the_figures_are_over(smollm: BlockModel) -> None:
    each = reference_texts(smollm.tokenizer)
    assert (len(each), sum(map(len, each)), len(reference_text(smollm.tokenizer))) == (40, 546, 624)
