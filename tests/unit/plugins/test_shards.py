"""Safetensors files of exports: tensors lie aligned in them, as far as the format allows, and anyone can read them."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file

from pdtrim_core import Drop, Element, Merge, Shrink
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.shards import ALIGNMENT, write_tensors
from pdtrim_plugins.exporters.vllm import Vllm
from tests.unit.plugins.exported import export, read_back

CACHE_LINE = 64


def begins_in(path: Path) -> dict[str, tuple[int, int]]:
    """Return where in a file each tensor begins and how many bytes it has, as the bytes of the file say."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header: dict[str, Any] = json.loads(content[8 : 8 + length])
    places = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    assert 8 + length + max(end for _, end in places.values()) == len(content)
    return {name: (8 + length + start, end - start) for name, (start, end) in places.items()}


def check_aligned(path: Path) -> None:
    """The first tensor, and all whose sizes are whole cache lines, begin at one; others where the order by size puts them."""
    places = begins_in(path)
    assert min(begin for begin, _ in places.values()) % CACHE_LINE == 0
    assert {name: begin % math.gcd(size, CACHE_LINE) for name, (begin, size) in places.items()} == dict.fromkeys(places, 0)


@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_of_a_checkpoint_begin_at_whole_cache_lines(family: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    plan: list[Element] = [Drop(0), Merge(3, 2)]
    if model.units(5).has("mlp"):
        plan.append(Shrink(5, "mlp", (1, 2, 3)))
    export(Checkpoints(), model, plan, tmp_path)
    path = tmp_path / "decode" / "model.safetensors"
    check_aligned(path)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == set(begins_in(path))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_shard_of_both_models_of_a_pair_is_aligned(dtype: Any, tmp_path: Path) -> None:
    export(Vllm(dtype=dtype, max_shard=5e-5), tiny_llama(), [Drop(1)], tmp_path)
    shards = sorted(tmp_path.glob("*/*.safetensors"))
    assert len(shards) > 4
    for shard in shards:
        check_aligned(shard)


def test_weights_that_transformers_maps_into_memory_are_aligned_there(tmp_path: Path) -> None:
    export(Checkpoints(), tiny_llama(), [Drop(1)], tmp_path)
    loaded = read_back(tmp_path / "decode")
    assert {name for name, weight in loaded.named_parameters() if weight.data_ptr() % CACHE_LINE} == set()


TENSORS = st.dictionaries(
    st.text("abc.", min_size=1),
    st.tuples(st.lists(st.integers(0, 9), max_size=3), st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool])),
    min_size=1,
)


@pytest.mark.numeric
@given(drawn=TENSORS)
def test_whatever_is_written_is_read_again_and_lies_as_aligned_as_it_can(
    drawn: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("drawn") / "drawn.safetensors"
    tensors = {
        name: torch.ones(shape).cumsum(0).to(dtype) if shape else torch.ones((), dtype=dtype)
        for name, (shape, dtype) in drawn.items()
    }
    write_tensors(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert all(read[name].dtype == tensor.dtype and torch.equal(read[name], tensor) for name, tensor in tensors.items())
    check_aligned(path)


def test_the_alignment_is_that_of_memory_which_torch_allocates() -> None:
    assert ALIGNMENT == CACHE_LINE
    assert {torch.empty(size).data_ptr() % ALIGNMENT for size in range(1, 200, 7)} == {0}
