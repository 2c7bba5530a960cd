"""What depends on a block's number is found by trying, and follows the blocks that are left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pdtrim_core import load_plugins
from pdtrim_core.api import Exporter, ExportFacts, auto_class_of
from pdtrim_core.model.renumbering import numbers_in, renumbered, traits_of, uncountable
from pdtrim_core.model.small_config import data_of
from pdtrim_core.testing import FAMILIES

SHAPE: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "intermediate_size": 48,
    "moe_intermediate_size": 16,
    "num_experts_per_tok": 2,
    "pad_token_id": 0,
}
DENSE_FIRST = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "head_dim": 8}


def make(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config)


def config_of(kind: str, **settings: Any) -> Any:
    return AutoConfig.for_model(kind, **{**SHAPE, **settings})


def test_the_number_of_a_block_is_known_by_any_name() -> None:
    with torch.device("meta"):
        model = make(
            AutoConfig.for_model("gpt_neo", hidden_size=32, num_layers=4, num_heads=4, attention_types=[[["global"], 4]])
        )
    blocks = tuple(model.transformer.h)
    numbers = numbers_in(blocks)
    assert {name for _, name in numbers} == {"layer_id"}
    assert traits_of(blocks[0], numbers) == traits_of(blocks[3], numbers)


def test_of_a_single_block_only_the_common_name_is_a_number() -> None:
    with torch.device("meta"):
        model = make(config_of("llama", num_hidden_layers=1))
    assert {name for _, name in numbers_in(tuple(model.model.layers))} == {"layer_idx"}


def test_a_number_and_a_list_of_numbers_follow_the_blocks() -> None:
    # Blocks 1 and 2 of six are left, of which the first two are dense and blocks 2 and 5 listed.
    text = {"dense": 2, "listed": [2, 5], "heads": 4, "name": "x"}

    def off(tried: dict[str, Any]) -> int:
        return int(tried["dense"] != 1) + int(tried["listed"] != [1])

    assert renumbered(text, [1, 2], 6, off) == {"dense": 1, "listed": [1], "heads": 4, "name": "x"}


def test_what_helps_nothing_is_left_as_it_is() -> None:
    text = {"heads": 4, "groups": 1}
    assert renumbered(text, [1, 2], 6, lambda tried: 1) == text


@pytest.mark.parametrize(
    ("kind", "settings"),
    [("llama", {}), ("glm4_moe", {**DENSE_FIRST, "first_k_dense_replace": 2}), ("smollm3", {})],
)
def test_blocks_that_a_config_can_count_are_no_problem(kind: str, settings: dict[str, Any]) -> None:
    config = config_of(kind, **settings)
    before = data_of(config)
    assert uncountable(config, make) == ""
    assert data_of(config) == before


def test_a_period_keeps_blocks_from_being_renumbered() -> None:
    config = config_of("ernie4_5_moe", moe_layer_interval=2, moe_layer_start_index=0, moe_num_experts=4, moe_k=2)
    assert "moe_layer_interval" in uncountable(config, make)


def test_blocks_that_change_with_how_many_there_are_cannot_be_renumbered() -> None:
    assert uncountable(config_of("minicpm3"), make) == "what its blocks compute with how many there are"


def test_the_blocks_of_a_model_that_sees_are_those_of_its_text_part() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28}
    text = {**FAMILIES["gemma3"][1], "model_type": "gemma3_text", "num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config={**vision, "patch_size": 14})
    assert uncountable(config, lambda tried: auto_class_of(tried).from_config(tried)) == ""


def test_the_exporter_names_the_key_before_any_search(tmp_path: Path) -> None:
    config = config_of("ernie4_5_moe", moe_layer_interval=2, moe_layer_start_index=0, moe_num_experts=4, moe_k=2)
    exporter = load_plugins().find("exporter", "checkpoints").component()
    assert isinstance(exporter, Exporter)
    (problem,) = exporter.problems(ExportFacts("owner/name", tmp_path, lambda: config))
    assert problem.startswith("owner/name: blocks cannot be renumbered, because of ")
    assert "moe_layer_interval" in problem
