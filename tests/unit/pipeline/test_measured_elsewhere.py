"""What workers measure: the same runs as without them, to the last bit, whatever is searched and whatever modules plans have."""

from __future__ import annotations

import json
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch

from pdtrim_core import Drop, PdtrimError, Plan, Recipe, Removal, run
from pdtrim_core.data.items import Item
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline.executor import Job
from pdtrim_core.pipeline.measured_elsewhere import Measured, jobs
from pdtrim_core.testing.models import save_tiny_model
from tests.unit.execution.test_staged_model import some_items
from tests.unit.pipeline.executors import InTurn

PLANS = [Plan.unified(Removal([Drop(block)])) for block in range(5)]
DATA: dict[str, Any] = {
    "recovery": "none",
    "prune": {"blocks": 2},
    "calibration": {"samples": 16, "held_out": 3},
    "evaluation": {"threads": 1, "fidelity": False, "batch_tokens": 128},
    "report": [],
}
SEARCHES: dict[str, dict[str, Any]] = {
    "one block after the other": {"searcher": "sequential"},
    "all pairs of blocks, as the paper": {"searcher": "exhaustive", "search": {"mode": "exact"}},
    "floors of annealing": {"searcher": {"use": "annealing", "alpha": 0.5}},
    "merges that were trained": {
        "searcher": {"use": "random", "tries": 4},
        "prune": {"blocks": 2, "merge_threshold": {"quantile": 0.2}},
        "distiller": {"use": "mse", "lr": 1e-2, "tokens": 512, "epochs": 1},
    },
    "what recovery would make of each": {
        "searcher": {"use": "sequential", "candidates": 3},
        "search": {"recovered": True, "recovered_tokens": 512},
        "recovery": [{"use": "fold", "tokens": 512}],
    },
    "weights on the disk": {"searcher": "sequential", "model": {"placement": "stream"}, "objective": "margin"},
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"))


def recipe_of(path: Path, out: Path, **changes: Any) -> Recipe:
    placed = {"path": str(path), **changes.pop("model", {})}
    return Recipe.from_data({"model": placed, **DATA, **changes}, where="x.toml", out=out)


@pytest.mark.parametrize("search", SEARCHES)
def test_a_run_with_workers_is_the_run_without_them(search: str, model: Path, tmp_path: Path) -> None:
    alone, executor = tmp_path / "alone", InTurn()
    here = run(recipe_of(model, alone, **SEARCHES[search]))
    there = run(recipe_of(model, tmp_path / "workers", **SEARCHES[search]), executor=executor)
    assert (alone / "plan.json").read_bytes() == (tmp_path / "workers" / "plan.json").read_bytes()
    assert (there.rows, there.candidates, there.notes) == (here.rows, here.candidates, here.notes)
    assert measured_in(alone) == measured_in(tmp_path / "workers")
    assert len(executor.asked) > 4


def measured_in(out: Path) -> dict[tuple[str, str], Any]:
    """What the journal ends with of each plan, whatever the order in which plans were measured."""
    lines = [json.loads(line) for line in (out / "journal.jsonl").read_text().splitlines()]
    return {(line["part"], json.dumps(line["plan"])): line for line in lines if "plan" in line}


def test_this_process_measures_nothing_that_it_asked_for(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[Plan] = []
    executor, measured = InTurn(), StagedModel.divergences

    def divergences(staged: StagedModel, *arguments: Any) -> Any:
        here.extend([] if executor.inside else [staged.plan])
        return measured(staged, *arguments)

    monkeypatch.setattr(StagedModel, "divergences", divergences)
    run(recipe_of(model, tmp_path / "run", searcher="sequential"), executor=executor)
    assert not here


def test_a_device_without_memory_makes_the_batches_smaller_everywhere(model: Path, tmp_path: Path) -> None:
    class ShortOfMemory(InTurn):
        def submit(self, job: Job[Any], *arguments: Any, near: object = None) -> Future[Any]:
            future = super().submit(job, *arguments, near=near)
            if arguments[0].batch_tokens > 64:
                future = Future()
                future.set_exception(torch.OutOfMemoryError("no memory is left"))
            return future

    outcome = run(recipe_of(model, tmp_path / "run", searcher="sequential"), executor=ShortOfMemory())
    assert "out of memory on the device: going on with batches of 64 tokens" in outcome.notes


def test_a_worker_with_other_weights_is_refused(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Changed(InTurn):
        def everywhere(self, job: Any, *arguments: Any) -> Any:
            found = super().everywhere(job, *arguments)
            vars(found[1])["_result"] = "0" * 64
            return found

    with pytest.raises(PdtrimError, match=r"^a worker has other weights of .*: give all the same checkpoint$"):
        run(recipe_of(model, tmp_path / "run"), executor=Changed())


def test_a_worker_with_other_code_is_refused(model: Path, tmp_path: Path) -> None:
    class Older(InTurn):
        def everywhere(self, job: Any, *arguments: Any) -> Any:
            data, sources = arguments
            return super().everywhere(job, data, {**sources, "torch": "1.0"})

    with pytest.raises(PdtrimError, match=r"^other code would measure there: torch is .*, and 1.0 where it was begun: install"):
        run(recipe_of(model, tmp_path / "run"), executor=Older())


def groups_of(items: list[Item], size: int) -> list[tuple[Item, ...]]:
    return [tuple(items[start : start + size]) for start in range(0, len(items), size)]


def test_jobs_have_every_plan_on_every_group_once_and_are_enough_for_all_workers() -> None:
    wanted = dict.fromkeys(groups_of(some_items(), 3), PLANS)
    found = list(jobs(wanted, 2))
    assert [(plan, group) for job in found for group in job.groups for plan in job.plans] == [
        (plan, group) for group in wanted for plan in PLANS
    ]
    assert len(found) >= 8


def test_jobs_on_a_disk_have_all_groups_so_that_each_block_is_read_once_for_them() -> None:
    groups = groups_of(some_items(), 3)
    wanted = {groups[0]: PLANS, groups[1]: PLANS[:1], groups[2]: []}
    assert list(jobs(wanted, 2, whole=True)) == [
        Measured(tuple(PLANS[:3]), (groups[0], groups[1])),
        Measured(tuple(PLANS[3:]), (groups[0], groups[1])),
    ]


def test_there_are_no_jobs_where_nothing_is_wanted() -> None:
    assert not list(jobs({group: [] for group in groups_of(some_items(), 3)}, 2))
    assert not list(jobs({}, 2, whole=True))
