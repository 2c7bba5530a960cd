"""The benchmark of stages: what each plan loses, and that what was measured is read again."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import Drop, KvOnly, Plan, Removal
from pdtrim_core.testing import tiny_llama

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(FOLDER)
    for name in ("stages", "paired", "pairs", "subject", "texts"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("stages")


def test_prefill_alone_makes_the_kv_of_what_decode_keeps(stages: Any) -> None:
    drops = Removal([Drop(2), Drop(4)])
    assert stages.plans((2, 4)) == {
        "prefill": Plan(prefill=Removal([KvOnly(2), KvOnly(4)])),
        "decode": Plan(decode=drops),
        "both": Plan.unified(drops),
    }


def test_each_length_and_set_has_a_line_and_is_measured_once(
    stages: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = tiny_llama(), "abcdefgh" * 40
    sets = {"one": (2,), "two": (1, 3)}
    rows = list(stages.rows(model, sets, text, [4, 9], tmp_path))
    assert [(row["prompt_tokens"], row["removed"]) for row in rows] == [(4, "one"), (4, "two"), (9, "one"), (9, "two")]
    for row in rows:
        assert min(row[stage][0] for stage in stages.STAGES) > 0
        assert row["prefill_beyond_decode"][0] == pytest.approx(row["prefill"][0] - row["decode"][0])
    monkeypatch.setattr(sys.modules["paired"], "measure_forced", None)
    assert list(stages.rows(model, sets, text, [4, 9], tmp_path)) == rows
    with pytest.raises(TypeError):
        list(stages.rows(model, {"one": (3,)}, text, [4], tmp_path))
