"""Recipes of related work: each runs, here on a tiny model and few texts, and does what its first lines say."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.recipe.toml_data import load
from pdtrim_core.results.run_folder import load_outcome
from pdtrim_core.testing.models import save_tiny_model

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
RELATED = sorted((Path(__file__).parents[2] / "examples" / "related").glob("*.toml"))
LONGEST = 25
SMALL = {
    "calibration.samples": 8,
    "calibration.held_out": 4,
    "evaluation.fidelity": "false",
    "recovery_data.prompt_tokens": 8,
    "recovery_data.answer_tokens": 8,
}


@pytest.mark.parametrize("path", RELATED, ids=lambda path: path.stem)
def test_a_recipe_of_related_work_runs(cli: Cli, tiny_checkpoint: Path, tmp_path: Path, path: Path) -> None:
    lines = path.read_text().splitlines()
    assert len(lines) <= LONGEST
    assert "arXiv:" in lines[0]
    data = load(path)
    has_experts = data.get("pruner") == "reap"
    model = save_tiny_model(tmp_path / "mixture", "mixtral") if has_experts else tiny_checkpoint
    recipe = path.read_text().replace(data["model"]["path"], str(model)).replace("50_000", "640")
    small = dict(SMALL)
    if data["prune"].get("blocks"):
        small["prune.blocks"] = 2
    given = tmp_path / path.name
    given.write_text(recipe)
    words = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    done = cli("run", given, "--out", "out", *words)
    assert done.code == 0, done.err
    plan = load_outcome(tmp_path / "out").plan
    assert plan.plan.decode or plan.plan.prefill or plan.plan.selections or plan.formats
