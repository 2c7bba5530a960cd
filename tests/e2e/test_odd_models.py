"""Models whose files contradict each other, or that no run takes, are named by `check`, before any run."""

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


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "quantised": (
        {"model_type": "llama", "quantization_config": {"quant_method": "gptq", "bits": 4}},
        "has quantised weights (gptq)",
    ),
    "other positions in longer texts": (
        {"model_type": "llama", "rope_scaling": {"rope_type": "dynamic", "factor": 2.0}},
        "uses dynamic rotary embeddings",
    ),
    "shared K/V": ({"model_type": "gemma3n_text"}, "shares K/V between blocks"),
    "encoder and decoder": ({"model_type": "t5"}, "is an encoder-decoder model"),
    "no language model": ({"model_type": "clip"}, "transformers has no causal language model of CLIPConfig"),
    "no K/V": ({"model_type": "mamba", "num_hidden_layers": 4}, "its blocks 0, 1, 2, 3 hand on no K/V"),
    "no decoder": ({"model_type": "bert"}, "its blocks let a token see those behind it"),
    "not known": ({"model_type": "banana"}, "does not know its model_type 'banana'"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_check_names_what_no_run_takes_and_other_libraries_say_nothing(what: str, cli: Cli, tmp_path: Path) -> None:
    config, named = REFUSED[what]
    (tmp_path / "model").mkdir()
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    (tmp_path / "recipe.toml").write_text('[model]\npath = "./model"\n[prune]\nblocks = 1\n')
    done = cli("check", "recipe.toml")
    assert (done.code, done.err) == (1, "")
    (line,) = done.out.splitlines()
    assert "model" in line
    assert named in line
