"""What a checkpoint for vLLM says about its blocks, their names in the engine, and tensors that are missing."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import PdtrimError
from pdtrim_plugins.vllm.layout import Layout, missing_tensors

# Block 0 is gone, 1 runs and is decode's 0, 2 runs for prefill alone, 3 runs beside the shadow that is decode's 1, 4 is K/V only.
BLOCK: dict[str, Any] = {
    "format": 1,
    "removed": [0],
    "kv_only": [4],
    "shadows": [3],
    "decode_index": {"1": 0, "3": 1, "4": 2},
    "head": False,
    "widths": {"1": {"mlp": 40, "bias": ["mlp"]}, "2": {"mlp": 48}},
}


def layout(**changes: Any) -> Layout:
    return Layout.of(SimpleNamespace(pdtrim={**BLOCK, **changes}))


def test_a_layout_reads_its_block() -> None:
    found = layout()
    assert [set(blocks) for blocks in (found.removed, found.kv_only, found.shadows)] == [{0}, {4}, {3}]
    assert found.decode_index == {1: 0, 3: 1, 4: 2}
    assert (found.head, found.widths, found.biased) == (False, {1: 40, 2: 48}, {1: ("mlp",)})
    assert not any((found.first_tokens, found.first_states, found.first_kv))


def test_all_blocks_of_decode_run_and_keep_their_names() -> None:
    entry = {"format": 1, "plan_hash": "0", "widths": {"1": {"bias": ["attention", "mlp"]}}, "place": {"blocks": "model.layers"}}
    found = Layout.of(SimpleNamespace(pdtrim=entry, num_hidden_layers=3))
    assert not any((found.removed, found.kv_only, found.shadows, found.widths))
    assert [found.own_prefix(f"model.layers.{number}") for number in range(3)] == [
        f"model.layers.{number}" for number in range(3)
    ]
    assert (found.head, found.biased) == (True, {1: ("attention", "mlp")})


def test_a_layout_knows_the_first_tokens_and_which_blocks_have_tables() -> None:
    found = layout(first_tokens={"tokens": [4, 9], "states": [1, 2, 3], "kv": [3, 4]})
    assert found.first_tokens == (4, 9)
    assert [set(blocks) for blocks in (found.first_states, found.first_kv)] == [{1, 2, 3}, {3, 4}]
    with pytest.raises(PdtrimError, match=r"is damaged \(KeyError\('states'\)\): export again"):
        layout(first_tokens={"tokens": [4]})


def test_what_decode_reads_has_decodes_name_and_nothing_else_has() -> None:
    found = layout()
    own = {number: found.own_prefix(f"model.layers.{number}") for number in (1, 2, 3, 4)}
    assert own == {1: "model.layers.0", 2: "model.prefill_layers.2", 3: "model.prefill_layers.3", 4: "model.layers.2"}
    assert found.decode_prefix("model.layers.3") == "model.layers.1"
    names = [*own.values(), found.decode_prefix("model.layers.3")]
    assert len(set(names)) == len(names)


def test_every_name_has_one_number_in_it() -> None:
    # vLLM finds the index of a block that way, and some of its blocks take the last part of the name.
    found = layout()
    for number in (1, 2, 3, 4):
        parts = found.own_prefix(f"model.layers.{number}").split(".")
        assert [part.isdigit() for part in parts] == [False, False, True]


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SimpleNamespace(), "config.json has no 'pdtrim' block: this is not what pdtrim-core export wrote for vLLM"),
        (SimpleNamespace(pdtrim={"format": 3}), "config.json has pdtrim format 3, this version reads 2: export again"),
        (
            SimpleNamespace(pdtrim={"format": 1}),
            "the 'pdtrim' block of config.json is damaged (KeyError('removed')): export again",
        ),
        (
            SimpleNamespace(pdtrim={**BLOCK, "decode_index": {"a": 1}}),
            "the 'pdtrim' block of config.json is damaged (ValueError(",
        ),
    ],
)
def test_a_config_that_says_nothing_of_use(config: Any, message: str) -> None:
    with pytest.raises(PdtrimError) as caught:
        Layout.of(config)
    assert str(caught.value).startswith(message)


def test_a_block_that_decode_has_no_place_for() -> None:
    with pytest.raises(PdtrimError, match=r"^the 'pdtrim' block of config\.json gives block 9 no decode_index: export again$"):
        layout().decode_prefix("model.layers.9")


def test_each_part_of_a_stacked_tensor_has_to_come() -> None:
    parameters = ["model.norm.weight", "a.qkv_proj.weight", "b.qkv_proj.weight", "b.qkv_proj.bias"]
    stacked = {"a.qkv_proj": ("a.q_proj", "a.k_proj", "a.v_proj"), "b.qkv_proj": ("b.k_proj", "b.v_proj")}
    all_of_them = {
        *("model.norm.weight", "a.q_proj.weight", "a.k_proj.weight", "a.v_proj.weight"),
        *("b.k_proj.weight", "b.v_proj.weight", "b.k_proj.bias", "b.v_proj.bias"),
    }
    assert missing_tensors(parameters, stacked, all_of_them) == []
    for name in all_of_them:
        assert missing_tensors(parameters, stacked, all_of_them - {name}) == [name]
