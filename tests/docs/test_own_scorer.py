"""The plugin and the recipe of README do a whole run, on a tiny model in a folder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import Recipe

ROOT = Path(__file__).parents[2]


def _saved(name: str) -> str:
    found = re.search(rf"<!-- save: {re.escape(name)} -->\s*```\w+\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found.group(1)


def _byte_tokenizer() -> Any:
    """Return a tokenizer of transformers whose tokens are bytes, made without any file."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def test_the_scorer_of_the_readme_is_twelve_lines() -> None:
    assert len(_saved("my_scorer.py").splitlines()) == 12


def test_the_scorer_and_the_recipe_of_the_readme_carry_out_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pdtrim_core.pipeline.pipeline import run
    from pdtrim_core.testing import tiny_transformers

    monkeypatch.chdir(tmp_path)
    for name in ("my_scorer.py", "own.toml"):
        (tmp_path / name).write_text(_saved(name))
    tiny_transformers("llama").save_pretrained(tmp_path / "tiny")
    _byte_tokenizer().save_pretrained(tmp_path / "tiny")

    recipe_file = tmp_path / "own.toml"
    changes = {
        "model.path": "./tiny",
        "model.placement": "cpu",
        "prune.blocks": 2,
        "calibration.samples": 8,
        "calibration.held_out": 4,
    }
    outcome = run(Recipe.read(recipe_file, changes={**changes, "searcher": "greedy"}))

    scores = json.loads((tmp_path / "runs/own/scores.json").read_text())["block"]
    best = sorted(sorted(range(6), key=lambda block: -scores[block])[:2])
    assert outcome.recipe["scorer"] == {"use": "norm-ratio"}
    assert [element.blocks[0] for element in outcome.plan.plan.decode] == best
