"""The first steps of a run: what they make of what a recipe says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from pdtrim_core import PdtrimError, PluginHost
from pdtrim_core.api import Scores
from pdtrim_core.pipeline.prepare import threshold_of
from pdtrim_core.recipe.recipe import Recipe

COSINES = Scores((0.9,) * 3, (0.97, 0.99), similarity=True)
DOTS = Scores((900.0,) * 3, (2.0, 1500.0))


def threshold(host: PluginHost, scores: Scores, **prune: Any) -> float:
    recipe = Recipe.from_data({"model": "package:none", "prune": {"blocks": 1, **prune}}, where="x", host=host)
    return threshold_of(recipe, scores)


def test_a_threshold_is_a_cosine_or_a_quantile(host: PluginHost) -> None:
    assert threshold(host, COSINES) == 0.95
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
