"""Checkpoints whose files contradict each other are told apart from good ones without opening either."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pdtrim_core.testing.models import FAMILIES, save_tiny_model
from pdtrim_plugins.model_sources.odd_files import are_odd


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_what_transformers_writes_is_not_odd(family: str, tmp_path: Path) -> None:
    assert not are_odd(save_tiny_model(tmp_path, family))


def test_several_files_of_weights_are_read_by_their_index(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "a.safetensors")
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    assert not are_odd(folder)
    fewer = {name: file for name, file in names.items() if ".layers.3." not in name}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": fewer}))
    assert are_odd(folder)


def test_damaged_files_are_left_to_who_opens_them(tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path)
    for text in ("[]", "{", '{"text_config": 3}', '{"num_attention_heads": "four"}'):
        (folder / "config.json").write_text(text)
        assert not are_odd(folder)
    (folder / "model.safetensors").write_bytes(b"\x00" * 3)
    assert not are_odd(folder)
    save_file({"lonely": torch.zeros(3)}, folder / "model.safetensors")
    assert not are_odd(folder)
    assert not are_odd(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "odd"),
    [
        ({"model_type": "llama"}, False),
        ({"model_type": "llama", "rope_parameters": {"rope_type": "llama3"}, "quantization_config": None}, False),
        ({"model_type": "llama", "rope_scaling": {"type": "dynamic"}}, True),
        ({"model_type": "gemma3_text", "rope_parameters": {"full_attention": {"rope_type": "longrope"}}}, True),
        ({"model_type": "gemma3", "text_config": {"num_kv_shared_layers": 2}}, True),
        ({"model_type": "llama", "is_encoder_decoder": True}, True),
        ({"model_type": "pdtrim_llama"}, False),
        ({"model_type": "gpt2"}, True),
        ({}, False),
    ],
)
def test_a_config_that_may_be_refused_wants_a_closer_look(config: dict[str, Any], odd: bool, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert are_odd(tmp_path) == odd
