"""The benchmark of number formats: equal bytes, paired figures, and which weights a layer has that is quantised once more."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from pdtrim_core import load_plugins
from pdtrim_core.api import Item
from pdtrim_core.model.quantized_linear import QuantizedLinear
from pdtrim_core.testing import tiny_model

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")
FOLDER = Path(__file__).parents[3] / "benchmarks"
KINDS = {"generated", "text"}


@pytest.fixture(scope="module")
def formats() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        return importlib.import_module("formats")
    finally:
        sys.path.remove(str(FOLDER))


def texts(seed: int, count: int) -> list[Item]:
    rng = Random(seed)
    tokens = [[rng.randrange(1, 200) for _ in range(16)] for _ in range(count)]
    return [Item((tuple(text[:8]),), (tuple(text[8:]),), 0, (1,), f"text {seed} {n}") for n, text in enumerate(tokens)]


@pytest.fixture(scope="module")
def asked(formats: Any) -> Any:
    model, host = tiny_model("llama"), load_plugins()
    measured = {kind: texts(number, 3) for number, kind in enumerate(sorted(KINDS))}
    bench = formats.Bench(model, formats.Texts({"generated": texts(9, 80)}, measured), host)
    return formats.Questions(bench, formats.Formats(model, host, 16), (3, 2, 4, 1), {"long text": texts(7, 2)})


@pytest.mark.parametrize(("gone", "expected"), [(0, 14), (5, 17), (30, 30)])
def test_what_is_left_at_more_bits_takes_as_many_bytes(formats: Any, gone: int, expected: int) -> None:
    assert formats.as_many_bytes(30, gone, 4.5, 8.5) == expected


def test_figures_are_paired_over_texts(formats: Any) -> None:
    one, other = {"text": [2.0, 4.0]}, {"text": [1.0, 2.0]}
    assert formats.ratios(one, other)["text"] == {"ratio": 2.0, "error": 0.0}
    assert formats.beyond(one, other)["text"] == {"beyond": 1.5, "beyond_error": 0.5}


def test_each_change_is_measured_in_one_stage_and_in_the_other(formats: Any, asked: Any) -> None:
    rows = list(asked.damage())
    assert [row["change"] for row in rows] == ["1 blocks gone", *formats.SCHEMES]
    for row in rows:
        assert {*row["ratio"]} == {*KINDS, "long text"}
        assert all(row[stage][kind]["kl"] > 0 for stage in ("decode", "prefill") for kind in row["ratio"])
    gone, by_bits = rows[0], {row["change"]: row["decode"]["text"]["kl"] for row in rows[1:]}
    assert by_bits["W8A16"] < by_bits["W4A16"] < gone["decode"]["text"]["kl"]


def test_pairs_are_compared_at_the_same_bytes(asked: Any) -> None:
    rows = {(row["format"], row["gone"]): row["decode_bytes"] for row in asked.at_bytes()}
    assert {*rows} == {("W8A16", 0), ("W4A16", 0), ("none", 1), ("W4A16", 1), ("W8A16", 2), ("W8A16", 3)}
    assert rows["W4A16", 1] < rows["W4A16", 0] < rows["W8A16", 0] < rows["none", 1]


def test_fold_is_measured_at_each_place_in_the_order(asked: Any) -> None:
    rows = {row["way"]: row for row in asked.orders()}
    assert len(rows) == 5
    assert rows["fold, quantise"]["text"]["beyond"] == 0
    assert len({row["text"]["kl"] for row in rows.values()}) == 5


def test_only_the_layers_that_are_fitted_are_quantised_from_other_weights(formats: Any, asked: Any) -> None:
    model, plan = asked._model, formats.without(asked._model, asked._ranking, 1)
    plain = asked._formats.given(plan, {}, decode="W4A16").layers
    folded = asked._folded_behind(plan, plain)
    ((key, module),) = asked._given_back(plain, folded, {}).items()
    dense = model.blocks[key.block]
    assert key.block == 2
    assert not [part for part in module.modules() if isinstance(part, QuantizedLinear)]
    changed = [name for name, weight in module.named_parameters() if not torch.equal(weight, dense.get_parameter(name))]
    assert changed == ["mlp.down_proj.weight"]
    again = asked._formats.given(plan, {key: module}, decode="W4A16").layers
    kept = [torch.equal(again[key].get_parameter(name), plain[key].get_parameter(name)) for name, _ in module.named_parameters()]
    assert kept.count(False) == 1
