"""Tasks that workers measure: the same results, written by this process alone."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import LoadedRun, PdtrimError, load_run, results_in

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
from pdtrim_core.harness.evaluate import Evaluation, Options, measured_in_worker
from pdtrim_core.harness.tasks import Source
from pdtrim_core.pipeline.executor import Job
from pdtrim_core.results.task_results import Variant
from tests.unit.pipeline.executors import InTurn

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def run(staged_run: LoadedRun, tmp_path: Path) -> LoadedRun:
    shutil.copytree(staged_run.path, tmp_path / "run", ignore=shutil.ignore_patterns("evaluations"))
    return load_run(tmp_path / "run")


@pytest.fixture
def options(tmp_path: Path) -> Options:
    folder = tmp_path / "data" / "piqa"
    folder.mkdir(parents=True)
    items = [{"id": f"piqa/{n}", "query": f"Question: {n}?\nAnswer:", "choices": ["one", "two"], "gold": n % 2} for n in range(5)]
    (folder / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    return Options(source=Source(folder.parent))


def test_workers_measure_each_task_on_each_variant_once(run: LoadedRun, options: Options) -> None:
    executor, said = InTurn(), list[str]()
    names: list[str] = ["piqa"]
    variants: list[Variant] = ["staged", "unified", "decode", "dense"]
    there = list(Evaluation(run, options, said.append, executor=executor).results(names, variants))
    asked = [one[4] for one in executor.asked if one[0] is measured_in_worker]
    assert asked == ["staged", "unified", "dense"]
    assert "piqa, decode: known, the same as unified" in said
    assert len(results_in(run.path)) == 4
    again = InTurn()
    assert list(Evaluation(run, options, executor=again).results(names, variants)) == there
    assert not again.asked
    here = list(Evaluation(run, options).results(names, variants, fresh=True))
    assert [replace(one, seconds=0.0) for one in here] == [replace(one, seconds=0.0) for one in there]


def test_a_folder_that_a_worker_does_not_see_is_refused(run: LoadedRun, options: Options) -> None:
    class Apart(InTurn):
        def everywhere(self, job: Job[Any], *arguments: Any) -> list[Future[Any]]:
            folder, *rest = arguments
            return super().everywhere(job, f"{folder} on another disk", *rest)

    with pytest.raises(PdtrimError) as error:
        list(Evaluation(run, options, executor=Apart()).results(["piqa"], ["staged"]))
    assert str(error.value) == f"a worker does not see what is in {run.path}: put it where all machines of the cluster see it"
    assert not results_in(run.path)


def test_a_worker_that_would_measure_something_else_is_refused(run: LoadedRun, options: Options) -> None:
    class Other(InTurn):
        def submit(self, job: Job[Any], *arguments: Any, near: object = None) -> Future[Any]:
            *rest, settings = arguments
            return super().submit(job, *rest, {**settings, "harness": "0.1"}, near=near)

    with pytest.raises(PdtrimError, match=r"^a worker would measure piqa with other harness: give all workers the same$"):
        list(Evaluation(run, options, executor=Other()).results(["piqa"], ["staged"]))
