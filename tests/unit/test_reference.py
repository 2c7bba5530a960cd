"""The figures under `tests/data/reference`: each file is described, and the texts are those of the model that they are over."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

from tests.reference import FOLDER, reference_text, reference_texts

if TYPE_CHECKING:
    from pdtrim_core import BlockModel


def test_every_file_of_figures_is_described_and_none_else() -> None:
    described = re.findall(r"^\| `(\w+\.json)` ", (FOLDER.parent / "README.md").read_text(), re.MULTILINE)
    assert sorted([*described, "texts.json"]) == sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.model
def test_token_ids_are_those_that_the_models_own_tokenizer_gives(smollm: BlockModel) -> None:
    texts = [smollm.tokenizer.decode(ids) for ids in reference_texts()]
    assert [smollm.tokenizer(text)["input_ids"] for text in texts] == reference_texts()
    assert smollm.tokenizer("\n\n".join(texts))["input_ids"] == reference_text()
    assert (len(texts), sum(map(len, reference_texts())), len(reference_text())) == (40, 546, 624)
