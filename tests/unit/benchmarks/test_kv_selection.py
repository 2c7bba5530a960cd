"""The benchmark of K/V selection: which ways there are, what each saves, and that the same is measured once."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import Drop, Edges, FirstOnly, KvOnly, PdtrimError, Plan, Removal
from pdtrim_core.execution.staged_model import ComparedToken
from pdtrim_core.fidelity.measure import Subject, measure_forced
from pdtrim_core.fidelity.needle import needle_inputs
from pdtrim_core.testing import selection_context, tiny_llama

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture(scope="module")
def benchmark_of() -> Any:
    sys.path.insert(0, str(FOLDER))
    try:
        spec = importlib.util.spec_from_file_location("kv_selection_benchmark", FOLDER / "kv_selection.py")
        assert spec
        assert spec.loader
        module = importlib.util.module_from_spec(spec)
        sys.modules["kv_selection_benchmark"] = module
        spec.loader.exec_module(module)
    finally:
        sys.path.remove(str(FOLDER))
    return module


def test_windows_are_spread_over_a_text_and_do_not_overlap(benchmark_of: Any) -> None:
    found = benchmark_of.windows(range(1000), 68, 5)
    assert [item.prompts[0][0] for item in found] == [0, 200, 400, 600, 800]
    assert {(len(item.prompts[0]), len(item.choices[0])) for item in found} == {(68, 32)}
    assert all(item.choices[0][0] == item.prompts[0][-1] + 1 for item in found)
    with pytest.raises(PdtrimError, match="fewer than the 1032 of one window"):
        benchmark_of.windows(range(1000), 1000, 5)


def test_a_larger_gamma_selects_fewer_blocks_and_the_rest_is_compared_with(benchmark_of: Any) -> None:
    context = selection_context(tiny_llama(), Plan(decode=Removal([Drop(2)])), [[number % 256 for number in range(240)]])
    found = {way.name: way.selections for way in benchmark_of.ways(context, [0.3, 0.6], [0.0, 0.4, 1.1])}
    assert found["all"] == found["keep 0.3 gamma 1.1"] == ()
    assert found["first-only 0.25"] == (FirstOnly(5),)
    assert found["keep 0.6 gamma 0"] == tuple(Edges(block, 0.3, 0.3) for block in (0, 1, 3, 4, 5))
    assert set(found["keep 0.3 gamma 0.4"]) <= set(found["keep 0.3 gamma 0"])


def test_a_line_tells_what_is_saved_by_the_length_of_prompts(benchmark_of: Any) -> None:
    model = tiny_llama()
    pair = benchmark_of.Pair(model, Plan(decode=Removal([Drop(0), Drop(1)])), {}, "decode")
    way = benchmark_of.Way("keep 0.3 gamma 0", tuple(Edges(block, 0.15, 0.15) for block in (2, 3, 4, 5)))
    along = (ComparedToken(0.25, same=True, overlap=0.75, logprob=-1.0, dense_logprob=-1.0),) * 3
    found = [benchmark_of.Answered(along, True), benchmark_of.Answered(along, False)]
    row = benchmark_of.row_of(way, found, pair, needle_inputs(model, 400, count=2), 8192)
    # A third of the blocks is gone, and 30 % of the rest is shipped; so few numbers a token are rounded to whole ones.
    assert row["times_fewer"] == pytest.approx(5.0, abs=0.1)
    assert (row["kl"], row["acceptance"], row["needle"][0]) == ([0.25, 0.0], [0.75, 0.0], 0.5)
    assert f"4 blocks   {row['times_fewer']} x  kl 0.250" in benchmark_of.line({"tokens": 8192, **row})


def test_ways_are_measured_as_pairs_by_themselves_are(benchmark_of: Any) -> None:
    model, plan = tiny_llama(), Plan(Removal([KvOnly(0)]), Removal([Drop(2)]))
    pair = benchmark_of.Pair(model, plan, {}, "decode")
    inputs, selections = needle_inputs(model, 400, count=2), ((), (Edges(3, 0.1, 0.1), FirstOnly(5)))
    found = benchmark_of.answered(pair, selections, inputs, 4)
    for selected, of_way in zip(selections, found, strict=True):
        (alone,) = measure_forced([Subject(model, plan.selecting(selected))], inputs.items, length=4, code={})
        kl = [sum(token.divergence for token in one.along) / len(one.along) for one in of_way]
        assert kl == pytest.approx([one.values["kl"] for one in alone.answers], abs=1e-4)
    assert found[0] != found[1]


def test_the_same_selections_are_measured_once(benchmark_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    answered = benchmark_of.answered

    def recorded(pair: Any, selections: Any, *rest: Any) -> Any:
        asked.extend(selections)
        return answered(pair, selections, *rest)

    monkeypatch.setattr(benchmark_of, "answered", recorded)
    monkeypatch.setattr(benchmark_of, "pair_of", lambda options: benchmark_of.Pair(tiny_llama(), Plan(), {}, "decode"))
    file = tmp_path / "found.json"
    options = ["--tokens", "400", "--keep", "0.3", "--gamma", "0,0,1.1", "--texts", "1", "--needles", "2", "--json", str(file)]
    benchmark_of.main([*options, "--answer-tokens", "3"])
    rows = json.loads(file.read_text())["rows"]
    assert [row["way"] for row in rows] == ["all", "first-only 0.25", *(f"keep 0.3 gamma {gamma}" for gamma in ("0", "0", "1.1"))]
    assert len(asked) == len(set(asked)) == 3
    assert rows[0]["kl"] == rows[4]["kl"] == [0.0, 0.0]
    assert rows[2]["kl"] == rows[3]["kl"] != rows[0]["kl"]
    assert rows[0]["times_fewer"] == 1.0
