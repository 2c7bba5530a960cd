"""The bound of appendices A and B, checked numerically, and the figures on its page."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.numeric

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def script() -> Any:
    import importlib.util

    spec = importlib.util.spec_from_file_location("pdtrim_error_bound", ROOT / "docs" / "error_bound.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(script: Any) -> list[Any]:
    return list(script.measure())


def test_no_head_errs_by_more_than_the_bound(rows: list[Any]) -> None:
    assert all(0 < row.largest <= 1 for row in rows)
    assert all(row.cases == 3 * 4 * (5 + 4 + 3 + 2 + 1) for row in rows)


def test_pruning_both_stages_errs_more_and_may_err_more_than_pruning_decode_alone(rows: list[Any]) -> None:
    for decode, both in zip(rows[::2], rows[1::2], strict=True):
        assert (decode.prompt, decode.pruned, both.pruned) == (both.prompt, "decode alone", "both stages")
        assert decode.error < both.error
        assert decode.bound < both.bound


def test_a_head_that_nothing_changed_has_no_error_and_no_bound(script: Any) -> None:
    from pdtrim_core import Plan
    from pdtrim_core.testing import tiny_llama

    (place, seen), *_ = script.heads(tiny_llama(), Plan(), list(b"a prompt"), list(b"an answer")).items()
    assert place == (0, 0)
    assert vars(script.case_of(seen, seen)) == {"error": 0.0, "first_order": 0.0, "bound": 0.0}


def test_the_recorded_head_gives_what_attention_gives(script: Any) -> None:
    """o = softmax(K q / sqrt(d)) V of what was recorded is the input of the output projection."""
    import torch

    from pdtrim_core import Plan
    from pdtrim_core.testing import tiny_llama

    model = tiny_llama()
    given: list[Any] = []
    hook = model.blocks[3].get_submodule("self_attn.o_proj").register_forward_pre_hook(lambda module, args: given.append(args[0]))
    seen = script.heads(model, Plan(), list(b"a prompt"), list(b"an answer"))
    hook.remove()
    together = torch.cat([seen[3, head].output for head in range(4)])
    assert torch.allclose(together, given[-1][0, -1].double(), atol=1e-4)


def test_the_figures_on_the_page_are_those(script: Any, rows: list[Any]) -> None:
    there = script.REGION.search(script.PAGE.read_text()).group()
    numbers = [[float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= \|)", line)] for line in there.splitlines()]
    made = [[float(cell) for cell in re.findall(r"(?<=\| )[\d.]+(?= \|)", line)] for line in script.text_of(rows).splitlines()]
    assert len(numbers) == len(made)
    # Another machine may round the second digit the other way.
    assert all(one == pytest.approx(other, rel=0.15) for one, other in zip(numbers, made, strict=True))
