"""The first steps of a run: what they make of what a recipe says."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pdtrim_core import PdtrimError, PluginHost
from pdtrim_core.api import CalibrationSource, Sample, Scores
from pdtrim_core.pipeline.prepare import draw, threshold_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import tiny_model

COSINES = Scores((0.9,) * 3, (0.97, 0.99), similarity=True)
DOTS = Scores((900.0,) * 3, (2.0, 1500.0))


def threshold(host: PluginHost, scores: Scores, **prune: Any) -> float:
    recipe = Recipe.from_data({"model": "package:none", "prune": {"blocks": 1, **prune}}, where="x", host=host)
    return threshold_of(recipe, scores)


def test_a_threshold_is_a_cosine_or_a_quantile(host: PluginHost) -> None:
    assert threshold(host, COSINES) == math.inf  # merges are trained, which takes long: a recipe says when it wants them
    assert threshold(host, COSINES, merges=True) == 0.95
    assert threshold(host, COSINES, merge_threshold=0.97) == 0.97
    assert threshold(host, DOTS, merge_threshold={"quantile": 0.5}) >= 2.0
    with pytest.raises(
        PdtrimError, match=r"prune.merge_threshold = 0.97 goes with scores that are cosines, and those of 'cosine' are not"
    ):
        threshold(host, DOTS, merge_threshold=0.97)


def test_more_than_any_cosine_asks_for_no_merges_whatever_the_scores(host: PluginHost) -> None:
    assert threshold(host, COSINES, merges=False) == math.inf
    assert threshold(host, DOTS, merges=False) == math.inf
    assert threshold(host, DOTS, merges=False, merge_threshold={"quantile": 0.5}) == math.inf


def drawing(host: PluginHost, folder: Path, *items: dict[str, Any], held_out: int = 0) -> Recipe:
    """Return a recipe whose items are those of a file."""
    file = folder / "items.jsonl"
    file.write_text("".join(json.dumps({"id": f"q{number}", **item}) + "\n" for number, item in enumerate(items)))
    calibration = {"use": "jsonl", "files": [str(file)], "samples": len(items) - held_out, "held_out": held_out}
    data = {"model": "package:none", "prune": {"blocks": 1}, "calibration": calibration}
    return Recipe.from_data(data, where="x", host=host)


def item(prompt: str, *choices: str) -> dict[str, Any]:
    return {"query": prompt, "choices": list(choices), "gold": 0}


@pytest.mark.parametrize("held_out", [0, 1])
def test_a_token_beyond_the_vocabulary_is_told_with_its_item(held_out: int, host: PluginHost, tmp_path: Path) -> None:
    plain, strange = item("one and two", "three", "four"), item("one and two", "three", "fo\u00fcr")
    model = tiny_model("llama", vocab_size=128, bos_token_id=1, eos_token_id=2, pad_token_id=3)
    assert len(draw(drawing(host, tmp_path, plain), host, model).items) == 1
    with pytest.raises(PdtrimError) as caught:
        draw(drawing(host, tmp_path, {**plain, "query": "two and one"}, strange, held_out=held_out), host, model)
    assert str(caught.value) == (
        "the item 'q1' of calibration 'jsonl' has the token 195, and the vocabulary of tiny llama ends at 127: its tokenizer and "
        "its weights do not belong together"
    )


def test_an_item_longer_than_the_learned_positions_is_told_with_its_length(host: PluginHost, tmp_path: Path) -> None:
    model = tiny_model("opt", max_position_embeddings=20)
    assert len(draw(drawing(host, tmp_path, item("0123456789", "01234567", "012345678")), host, model).items) == 1
    recipe = drawing(host, tmp_path, item("x", "y"), item("0123456789", "0", "0123456789"))
    with pytest.raises(PdtrimError) as caught:
        draw(recipe, host, model)
    assert str(caught.value) == (
        "the item 'q1' of calibration 'jsonl' needs 21 positions, and tiny opt has learned 20: take shorter texts"
    )
    # Rotary positions go on.
    assert len(draw(recipe, host, tiny_model("llama", max_position_embeddings=20)).items) == 2


class Endless(CalibrationSource):
    """Gives more samples than it is asked for."""

    name = "endless"

    def draw(self, count: int, rng: Random) -> Iterable[Sample]:
        return (Sample(f"{number} and", (" two", " three"), 0, f"{number}") for number in itertools.count())


def test_of_a_source_that_never_ends_no_more_is_drawn_than_is_wanted(host: PluginHost, tmp_path: Path) -> None:
    recipe = drawing(host, tmp_path, item("one and two", "three", "four"))
    recipe = replace(recipe, calibration=Endless(samples=6, held_out=2))
    drawn = draw(recipe, host, tiny_model("llama"))
    assert [len(drawn.items), len(drawn.held_out), len(drawn.fresh)] == [6, 2, 3]


@pytest.mark.parametrize(("samples", "fresh"), [(None, 64), (64, 32), (192, 48), (255, 1), (256, 0)])
def test_what_a_source_has_left_is_fresh(host: PluginHost, tmp_path: Path, samples: int | None, fresh: int) -> None:
    """`mini` has 256 items beside the held-out ones; of those that are wanted, half as often as it takes, as by default."""
    recipe = drawing(host, tmp_path, item("one and two", "three", "four"))
    mini: Any = host.find("calibration", "mini").component.model_validate({} if samples is None else {"samples": samples})
    drawn = draw(replace(recipe, calibration=mini), host, tiny_model("llama"))
    assert len(drawn.fresh) == fresh
    assert not {one.prompts for one in drawn.fresh} & {one.prompts for one in (*drawn.items, *drawn.held_out)}
