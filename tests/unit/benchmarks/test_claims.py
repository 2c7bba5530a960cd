"""The benchmark of the paper's claims: which recipes there are, and what a difference says."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import load_plugins
from pdtrim_core.recipe.recipe import Recipe

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("claims", "paired", "quickstart", "subject", "texts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("claims")


def test_every_way_is_a_recipe_with_a_folder_of_its_own(claims: Any, tmp_path: Path) -> None:
    host = load_plugins()
    ways = [way for claim in claims.CLAIMS.values() for way in (claim.better, *claim.others.values())]
    changed = {str(sorted(way.changes.items())): way for way in ways}
    folders = [claims._name_of(way.changes, seed) for way in changed.values() for seed in (0, 1)]
    assert len(set(folders)) == 2 * len(changed)
    assert "paper-seed0" in folders
    for way in changed.values():
        recipe = Recipe.from_data(claims.recipe_data(way, 1, "package:x"), where="claim", out=tmp_path / "run", host=host)
        assert recipe.settings.seed == 1


def test_a_claim_compares_at_least_two_models(claims: Any) -> None:
    for claim in claims.CLAIMS.values():
        assert claim.others
        assert claim.better not in claim.others.values()


@pytest.mark.parametrize(
    ("value", "error", "of_seeds", "alike", "expected"),
    [
        (0.10, 0.04, [0.05, 0.15], False, "seen"),
        (0.10, 0.06, [0.05, 0.15], False, "not seen"),
        (0.10, 0.01, [-0.05, 0.25], False, "not seen"),
        (0.10, 0.01, [0.30, 0.0], False, "not seen"),
        (-0.10, 0.04, [-0.05, -0.15], False, "the opposite"),
        (0.0, 0.0, [0.0, 0.0], False, "not seen"),
        (-0.05, 0.03, [-0.10, 0.0], True, "seen"),
        (-0.10, 0.03, [-0.10, -0.10], True, "not seen"),
    ],
)
def test_a_difference_is_seen_beyond_its_error_if_all_seeds_agree(
    value: float, error: float, of_seeds: list[float], *, alike: bool, expected: str, claims: Any
) -> None:
    assert claims.verdict(value, error, of_seeds, alike=alike) == expected


def test_seeds_are_paired_prompt_by_prompt(claims: Any) -> None:
    better = [{("", 0): (1.0, 2.0), ("", 1): (2.0, 4.0)}, {("", 0): (3.0, 2.0), ("", 1): (0.0, 4.0)}]
    other = [
        {prompt: (nats + shift, tokens) for prompt, (nats, tokens) in own.items()}
        for own, shift in zip(better, (1, 3), strict=True)
    ]
    found = claims.compared(better, other, alike=False)
    assert found["of_seeds"] == pytest.approx([2 / 6, 6 / 6])
    assert found["nearer_by"][0] == pytest.approx(4 / 6)
    assert found["kl"] == pytest.approx(3 / 6)
    assert found["kl_of_other"] - found["kl"] == pytest.approx(found["nearer_by"][0])
