"""Models whose files contradict each other are named by `check`, before any run."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
CHANGES: dict[str, tuple[dict[str, Any], str]] = {
    "more blocks than there are": ({"num_hidden_layers": 9}, "model.layers.6."),
    "K/V heads that do not divide": ({"num_key_value_heads": 3}, "k_proj.weight is 16x32 and by its config 24x32"),
    "no head": ({"num_attention_heads": 0}, "num_attention_heads = 0"),
    "less than no K/V heads": ({"num_key_value_heads": -1}, "num_key_value_heads = -1"),
    "no token": ({"vocab_size": 0}, "vocab_size = 0"),
    "less than no width": ({"hidden_size": -8}, "hidden_size = -8"),
    "no block": ({"num_hidden_layers": 0}, "num_hidden_layers = 0"),
    "a width that heads do not divide": (
        {"num_attention_heads": 5, "head_dim": None},
        "odd: The hidden size (32) is not a multiple of the number of attention heads (5)",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_check_names_what_is_odd(change: str, cli: Cli, tiny_checkpoint: Path, tmp_path: Path) -> None:
    changes, named = CHANGES[change]
    folder = shutil.copytree(tiny_checkpoint, tmp_path / "odd")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    (tmp_path / "recipe.toml").write_text(f'[model]\npath = "{folder}"\n[prune]\nblocks = 1\n')
    done = cli("check", "recipe.toml")
    assert done.code == 1
    (line,) = done.out.splitlines()
    assert str(folder) in line
    assert named in line
