"""A pair whose decode reads only some of a prompt's K/V: engines cannot run it, and a checkpoint's plan has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pdtrim_core.api import Drop, ExportFacts, PdtrimError, Plan, Removal
from pdtrim_core.plan.selections import Edges, FirstOnly, Selection
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.plan import PlanFile
from pdtrim_plugins.exporters.vllm import Vllm

DROPS = Removal([Drop(2)])


@pytest.mark.parametrize("selection", [Edges(1, 0.1, 0.2), FirstOnly(5)])
def test_vllm_is_refused_with_the_reason_and_what_runs_it(selection: Selection, tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan(decode=DROPS, selections=(selection,)), tmp_path)
    with pytest.raises(PdtrimError, match="engines have no such selection inside a layer: generate with pdtrim_core"):
        list(Vllm().export(outcome, model, tmp_path))
    assert not (tmp_path / "decode").exists()


def test_a_pair_that_reads_all_is_not(tmp_path: Path) -> None:
    model = tiny_llama()
    facts = ExportFacts.of_run(run_with_plan(model, Plan(decode=DROPS), tmp_path), model, tmp_path)
    assert not facts.selects
    assert not any("selection" in problem for problem in Vllm().problems(facts))
    assert any("selection" in problem for problem in Vllm().problems(replace(facts, selects=True)))


def test_the_plan_that_is_exported_has_the_selections(tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan(decode=DROPS, selections=(FirstOnly(5),)), tmp_path)
    (path,) = PlanFile().export(outcome, model, tmp_path)
    assert '"kind": "first-only"' in path.read_text()
