"""Exports of plans that drop the attention or the MLP of blocks: our own class, and refusals by everything else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pdtrim_core.api import Drop, DropPart, Element, Exporter, PdtrimError, Plan, Removal, Shrink
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.host.host import load_plugins
from pdtrim_core.testing import tiny_model
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from tests.unit.plugins.exported import TOKENS, decode_logits, export, logits_of, parameters_of, read_back

PARTS: list[Element] = [DropPart(0, "attention"), DropPart(2, "mlp"), Drop(3), DropPart(5, "attention")]
WRITES = {"checkpoints", "gguf", "plan", "vllm"}


@pytest.mark.parametrize("family", ["llama", "gemma3", "mixtral", "phi3", "gpt-neox", "qwen3"])
def test_blocks_without_a_part_come_back_with_the_same_logits(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    export(Checkpoints(), model, PARTS, tmp_path)
    found = read_back(tmp_path / "decode")
    assert type(found).__name__.startswith("PDTrim")
    assert torch.allclose(logits_of(found), decode_logits(model, PARTS, tmp_path), atol=1e-5)
    assert parameters_of(found) == model.sizes.kept_parameters(Plan.unified(Removal(PARTS)), "decode")


@pytest.mark.parametrize("family", ["llama", "gemma3"])
def test_they_generate_what_the_plan_does(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    export(Checkpoints(), model, PARTS, tmp_path)
    found = read_back(tmp_path / "unified")
    prompt = TOKENS[:1, :12]
    made = TwoPhaseModel(model, Plan.unified(Removal(PARTS))).generate(prompt[0].tolist(), 6)
    with torch.inference_mode():
        text = found.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert text[0, 12 : 12 + len(made)].tolist() == made


def test_a_block_may_have_fewer_channels_and_no_attention(tmp_path: Path) -> None:
    model = tiny_model("llama")
    elements: list[Element] = [
        DropPart(1, "attention"),
        Shrink(1, "mlp", (0, 5)),
        DropPart(4, "mlp"),
        Shrink(4, "attention", (1,)),
    ]
    export(Checkpoints(), model, elements, tmp_path)
    assert torch.allclose(logits_of(read_back(tmp_path / "decode")), decode_logits(model, elements, tmp_path), atol=1e-5)


def test_an_older_version_refuses_the_config(tmp_path: Path) -> None:
    """It reads format 1, and would fill the missing weights with random ones."""
    export(Checkpoints(), tiny_model("llama"), PARTS, tmp_path)
    config = read_back(tmp_path / "decode").config
    assert config.pdtrim["format"] == 2
    assert config.pdtrim["without"] == {"0": "attention", "2": "mlp", "4": "attention"}


@pytest.mark.parametrize("name", sorted({one.component.name for one in load_plugins().of_kind("exporter")} - WRITES))
def test_other_exporters_refuse_parts_with_one_line(name: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    component = load_plugins().find("exporter", name).component
    assert issubclass(component, Exporter)
    outcome = run_with_plan(model, Plan.unified(Removal(PARTS)), tmp_path)
    with pytest.raises(PdtrimError, match="without their attention or their MLP, which this format has no word for"):
        list(component().export(outcome, model, tmp_path))
