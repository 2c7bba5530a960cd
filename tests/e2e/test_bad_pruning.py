"""What users get wrong with other pruners: one clear line that says what to change, and no plan."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def error_of(cli: Cli, recipe: Path, pruner: str, **settings: Any) -> str:
    """Run the recipe with a pruner and return the last line of stderr."""
    data = {
        "model.path": "./model",
        "pruner": {"use": pruner},
        "prune.fraction": 0.13,
        **{key.replace("__", "."): value for key, value in settings.items()},
    }
    path = recipe.parent / "pruning.toml"
    lines = ["recipe = 1", 'out = "run"', "[calibration]", "samples = 8", "held_out = 4"]
    path.write_text("\n".join(lines) + "\n")
    words = [word for key, value in data.items() for word in ("--set", f"{key}={toml(value)}")]
    done = cli("run", path, *words)
    assert "Traceback" not in done.err
    assert done.code == 1
    assert not (recipe.parent / "run" / "plan.json").exists()
    return done.err.splitlines()[-1]


def toml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(inner)}" for key, inner in value.items()) + "}"
    return json.dumps(value)
