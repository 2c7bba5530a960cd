"""Exports of plans with fewer experts: the family's own class where all blocks keep as many, and else one of ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core.api import Drop, DropPart, Element, Plan, Removal, Shrink
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from tests.unit.mixtures import EXPERTS, GROUPED, SHAPES, experts_of, mixture
from tests.unit.plugins.exported import TOKENS, decode_logits, export, logits_of, parameters_of, read_back

GONE = (1, 4, 6)
KEYS = {
    "mixtral": "num_local_experts",
    "qwen3_moe": "num_local_experts",
    "gpt_oss": "num_local_experts",
    "deepseek_v2": "n_routed_experts",
}


def alike(model: BlockModel) -> list[Element]:
    """As many experts from each block, each time others."""
    return [Shrink(block, "experts", tuple(sorted((expert + block) % EXPERTS for expert in GONE))) for block in experts_of(model)]


@pytest.mark.parametrize("family", SHAPES)
def test_as_many_experts_a_block_are_an_ordinary_checkpoint(family: str, tmp_path: Path) -> None:
    model = mixture(family)
    elements = alike(model)
    export(Checkpoints(), model, elements, tmp_path)
    config = json.loads((tmp_path / "decode" / "config.json").read_text(encoding="utf-8"))
    assert config["model_type"] == family
    assert config[KEYS.get(family, "n_routed_experts" if "v3" in family else "num_experts")] == EXPERTS - len(GONE)
    found = read_back(tmp_path / "decode")
    assert type(found) is type(model.model)
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)
    assert parameters_of(found) == model.sizes.kept_parameters(Plan.unified(Removal(elements)), "decode")


@pytest.mark.parametrize("family", SHAPES)
def test_blocks_with_numbers_of_their_own_need_our_class(family: str, tmp_path: Path) -> None:
    model = mixture(family)
    elements: list[Element] = [Shrink(1, "experts", GONE), Shrink(3, "experts", (0, 7))]
    export(Checkpoints(), model, elements, tmp_path)
    found = read_back(tmp_path / "decode")
    assert type(found).__name__.startswith("PDTrim")
    assert found.config.pdtrim["format"] == 3
    assert found.config.pdtrim["widths"] == {"1": {"experts": 5}, "3": {"experts": 6}}
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)
    assert parameters_of(found) == model.sizes.kept_parameters(Plan.unified(Removal(elements)), "decode")


@pytest.mark.parametrize(
    "elements",
    [
        [Drop(0), Shrink(1, "experts", GONE), Shrink(2, "experts", GONE), Shrink(3, "experts", GONE)],
        [DropPart(1, "attention"), Shrink(1, "experts", GONE), Shrink(2, "attention", (1,))],
        [*(Shrink(block, "experts", GONE) for block in range(4)), *(Shrink(block, "attention", (0,)) for block in range(4))],
    ],
    ids=str,
)
def test_experts_go_beside_blocks_parts_and_heads(elements: list[Element], tmp_path: Path) -> None:
    model = mixture("mixtral")
    export(Checkpoints(), model, elements, tmp_path)
    found = read_back(tmp_path / "unified")
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)
    prompt = TOKENS[:1, :12]
    made = TwoPhaseModel(model, Plan.unified(Removal(elements))).generate(prompt[0].tolist(), 6)
    with torch.inference_mode():
        text = found.generate(prompt, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert text[0, 12 : 12 + len(made)].tolist() == made


@pytest.mark.parametrize("blocks", [(1,), (1, 2, 3)], ids=str)
def test_groups_come_back_whole(blocks: tuple[int, ...], tmp_path: Path) -> None:
    model = mixture("deepseek_v3", **GROUPED)
    elements = [Shrink(block, "experts", (1, 4, 11, 12)) for block in blocks]
    export(Checkpoints(), model, elements, tmp_path)
    found: Any = read_back(tmp_path / "decode")
    assert torch.allclose(logits_of(found), decode_logits(model, elements, tmp_path), atol=1e-5)


def test_a_prefill_with_all_experts_does_not_change_what_decode_is(tmp_path: Path) -> None:
    model = mixture("qwen3_moe")
    decode = Removal(alike(model))
    export(Checkpoints(), model, Plan(decode=decode), tmp_path)
    assert torch.allclose(logits_of(read_back(tmp_path / "decode")), decode_logits(model, tuple(decode), tmp_path), atol=1e-5)
