"""A run from recipe to outcome: the order of its steps, what it leaves in its folder, and how it goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pdtrim_core import Outcome, PdtrimError, Plan, PluginError, PluginHost, RunCache, hookimpl
from pdtrim_core.api import Exporter
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_plugins.calibrations import Mini
from tests.unit.pipeline.runs import DATA

BEFORE = ["run", "open the model", "calibrate"]
AFTER = ["evaluate", "write", "finished", "ended"]
MERGING = {"prune": {"blocks": 3, "merge_threshold": {"quantile": 0.2}}}
NO_SEARCH = {"searcher": None, "prune": {"blocks": 2}}


class Ears:
    """Hears the steps of runs, and when they begin and end."""

    def __init__(self) -> None:
        self.heard: list[str] = []

    @hookimpl
    def pdtrim_run_started(self) -> None:
        self.heard.append("run")

    @hookimpl
    def pdtrim_step_started(self, step: str) -> None:
        self.heard.append(step)

    @hookimpl
    def pdtrim_run_finished(self) -> None:
        self.heard.append("finished")

    @hookimpl
    def pdtrim_run_ended(self) -> None:
        self.heard.append("ended")


@pytest.fixture
def ears() -> Ears:
    return Ears()


@pytest.fixture
def host(ears: Ears, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PluginHost:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    host = tiny_host()
    host.register(ears, Origin("ears", "ears"))
    return host


def recipe(host: PluginHost, out: Path, **changes: Any) -> Recipe:
    data = {key: value for key, value in {**DATA, **changes}.items() if value is not None}
    return Recipe.from_data(data, where="x.toml", out=out, host=host)


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        (
            {},
            ["score the blocks", "measure the dense model", "search", "split the stages"],
        ),
        (
            {**MERGING, "searcher": "greedy", "distiller": {**DATA["distiller"], "lr": 1e-3}},
            ["score the blocks", "merge pairs", "measure the dense model", "search", "split the stages"],
        ),
        (
            {**MERGING, "searcher": "greedy", "distiller": {**DATA["distiller"], "train": "after-search", "lr": 1e-3}},
            [
                *("score the blocks", "measure the dense model", "search"),
                *("merge the chosen pairs", "measure the dense model", "split the stages"),
            ],
        ),
        ({**NO_SEARCH, "pruner": "shortgpt"}, ["prune", "measure the dense model", "split the stages"]),
        ({**NO_SEARCH, "pruner": {"use": "slicegpt", "window": 16}}, ["prune", "measure the dense model"]),
    ],
    ids=["search", "training before the search", "training after the search", "a pruner", "a pruner that replaces the model"],
)
def test_steps_come_in_order_whatever_finds_what_decode_loses(
    host: PluginHost, ears: Ears, tmp_path: Path, changes: dict[str, Any], steps: list[str]
) -> None:
    outcome = run(recipe(host, tmp_path / "run", **changes), host)
    assert ears.heard == [*BEFORE, *steps, *AFTER]
    # The step of writing ends behind the outcome that it writes.
    assert list(outcome.seconds) == list(dict.fromkeys([*BEFORE[1:], *steps, "evaluate"]))


def test_a_path_is_no_recipe() -> None:
    with pytest.raises(PdtrimError) as caught:
        run("chat.toml")  # type: ignore[arg-type]
    assert str(caught.value) == "run takes a recipe, not 'chat.toml': Recipe.read(path) reads one from a file"


def test_what_is_returned_is_what_the_folder_has(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(recipe(host, tmp_path / "run"), host)
    assert Outcome.from_json((tmp_path / "run" / "outcome.json").read_text()).to_json() == outcome.to_json()
    assert outcome.plan.to_json() == (tmp_path / "run" / "plan.json").read_text()
    assert {row.name for row in outcome.rows} == {"dense", "unified", "staged"}


def test_a_run_that_was_interrupted_goes_on_where_it_stopped(host: PluginHost, tmp_path: Path) -> None:
    made = recipe(host, tmp_path / "run")
    before = run(made, host)
    journal = tmp_path / "run" / "journal.jsonl"
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:4]))
    again = run(made, host)
    assert journal.read_bytes() == whole
    # What was measured before is counted with it; the readings of held-out items are in a ledger of their own.
    assert again.candidates["measured"] == 2 * before.candidates["measured"] - 4
    assert (again.rows, again.saved_plan, again.gains) == (before.rows, before.saved_plan, before.gains)


def test_a_finished_run_measures_nothing_again_unless_it_is_to_begin_anew(host: PluginHost, tmp_path: Path) -> None:
    made = recipe(host, tmp_path / "run")
    before = run(made, host)
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    again = run(made, host)
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert again.candidates["measured"] == before.candidates["measured"]
    assert again.candidates["remembered"] > before.candidates["remembered"]
    assert run(made, host, fresh=True).candidates == before.candidates


def test_another_recipe_is_not_gone_on_with(host: PluginHost, ears: Ears, tmp_path: Path) -> None:
    run(recipe(host, tmp_path / "run"), host)
    ears.heard.clear()
    with pytest.raises(PdtrimError) as caught:
        run(recipe(host, tmp_path / "run", seed=1), host)
    assert str(caught.value) == (
        f"{tmp_path / 'run'} holds a run of another recipe, which differs in seed: start anew with --fresh, or choose another "
        "folder with --out"
    )
    assert ears.heard == []


@pytest.mark.parametrize(
    "changes",
    [
        {**MERGING, "distiller": {**DATA["distiller"], "lr": 1e-3}},
        {**NO_SEARCH, "pruner": "streamline"},
    ],
    ids=["search", "pruner"],
)
def test_merges_trained_on_other_texts_are_not_gone_on_with(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    made = recipe(host, tmp_path / "run", **changes)
    run(made, host)
    texts = [f"Another line of prose, the one with number {n}." for n in range(20)]
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: texts)
    with pytest.raises(PdtrimError) as caught:
        run(made, host)
    assert str(caught.value) == (
        f"{tmp_path / 'run'} holds measurements made with other training: start anew with --fresh, or choose another folder "
        "with --out"
    )


def test_listeners_hear_the_end_of_a_run_that_fails(host: PluginHost, ears: Ears, tmp_path: Path) -> None:
    with pytest.raises(PdtrimError, match="cannot remove 6 of the 6 blocks"):
        run(recipe(host, tmp_path / "run", prune={"blocks": 6}), host)
    assert ears.heard == ["run", "open the model", "ended"]


def test_runs_that_share_a_cache_open_the_model_once(host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = host.find("model", "tiny").component
    opened = []
    open_tiny = tiny.open  # type: ignore[attr-defined]

    def count(self: object) -> object:
        opened.append(self)
        return open_tiny(self)

    monkeypatch.setattr(tiny, "open", count)
    shared = RunCache()
    for name in "ab":
        run(recipe(host, tmp_path / name, seed=ord(name)), host, shared=shared)
    assert len(opened) == 1


class Elsewhere(Exporter):
    """Says that it wrote beside the folder of the run."""

    name = "elsewhere"

    def export(self, outcome: Outcome, model: object, out: Path) -> list[Path]:
        assert outcome.plan.plan != Plan()
        return [out.parent / "beside.txt"]


def test_a_run_whose_exporter_fails_has_no_outcome_and_ends_well_the_next_time(host: PluginHost, tmp_path: Path) -> None:
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: [Elsewhere])), Origin("elsewhere", "elsewhere"))
    with pytest.raises(PluginError) as caught:
        run(recipe(host, tmp_path / "run", exporter="elsewhere"), host)
    assert str(caught.value) == (
        f"exporter 'elsewhere' (elsewhere) wrote {tmp_path / 'beside.txt'}, which is not under {tmp_path / 'run'}"
    )
    assert not (tmp_path / "run" / "outcome.json").exists()
    journal = (tmp_path / "run" / "journal.jsonl").read_bytes()
    assert run(recipe(host, tmp_path / "run"), host).candidates["measured"] > 0
    assert (tmp_path / "run" / "journal.jsonl").read_bytes() == journal
    assert json.loads((tmp_path / "run" / "outcome.json").read_text())["saved_plan"]
