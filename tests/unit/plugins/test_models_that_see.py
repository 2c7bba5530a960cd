"""Models that see beside a language model: opened whole, pruned in their language model, and written whole again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForImageTextToText

from pdtrim_core import PluginHost
from pdtrim_core.api import BlockModel, Drop, Element, Plan, Removal, Shrink
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.model_sources.folder import FolderModel
from tests.unit.plugins.exported import TOKENS, decode_logits, export, logits_of

GONE: list[Element] = [Drop(1), *(Shrink(block, "mlp", (0, 3)) for block in (0, 2, 3, 4, 5))]


def llava(folder: Path) -> Path:
    """A tiny Llava with the tokenizer of tiny models."""
    save_tiny_model(folder)
    text = AutoConfig.from_pretrained(folder).to_dict()
    vision = {
        "model_type": "clip_vision_model",
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "image_size": 16,
        "patch_size": 8,
        "projection_dim": 16,
    }
    config = AutoConfig.for_model("llava", text_config=text, vision_config=vision, image_token_index=259)
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=1.5 * parameter.shape[-1] ** -0.5)
    model.save_pretrained(folder)
    return folder


@pytest.fixture
def model(host: PluginHost, tmp_path: Path) -> BlockModel:
    source = FolderModel(path=str(llava(tmp_path / "llava")), placement="cpu")
    assert source.block_count() == 6
    assert source.check_weights()
    loaded = source.open()
    return BlockModel(loaded.model, loaded.tokenizer, host.find_blocks(loaded.model, "llava"), name="llava", dtypes=loaded.dtypes)


def test_the_language_model_runs_in_two_phases(model: BlockModel) -> None:
    prompt = TOKENS[0, :9].tolist()
    (made, text) = TwoPhaseModel(model, Plan()).generate(prompt, 4), list(prompt)
    for token in made:
        with torch.inference_mode():
            assert int(model.model(input_ids=torch.tensor([text])).logits[0, -1].argmax()) == token
        text.append(token)


def test_what_sees_is_written_as_it_was(model: BlockModel, tmp_path: Path) -> None:
    export(Checkpoints(), model, GONE, tmp_path)
    found: Any = AutoModelForImageTextToText.from_pretrained(tmp_path / "decode").eval()
    assert type(found) is type(model.model)
    assert found.config.text_config.num_hidden_layers == 5
    assert torch.allclose(logits_of(found), decode_logits(model, Plan.unified(Removal(GONE)), tmp_path), atol=1e-5)
    seen = {name: weight for name, weight in model.model.state_dict().items() if "vision" in name or "projector" in name}
    written = found.state_dict()
    assert seen
    assert all(torch.equal(weight, written[name]) for name, weight in seen.items())
