"""The runs of a sweep that workers carry out: the same folders and table as one by one, in folders that all machines see."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.pipeline.executor import Job
from pdtrim_core.sweeping.one_run import Ended
from pdtrim_core.sweeping.running import carry_out, results
from pdtrim_core.sweeping.sweep import Changes, Sweep, read_sweep
from pdtrim_core.testing.models import save_tiny_model
from tests.unit.pipeline.executors import InTurn

SWEEP = """\
sweep = 1
[recipe]
model = "{model}"
prune = {{blocks = 2}}
recovery = "none"
searcher = {{use = "random", tries = 2}}
calibration = {{samples = 8, held_out = 4}}
evaluation = {{fidelity = false, threads = 1}}
[[runs]]
name = "good"
[[runs]]
name = "bad"
set.prune.blocks = 6
[[runs]]
name = "other"
set.seed = 3
"""


def sweep_in(folder: Path) -> Sweep:
    folder.mkdir()
    model = save_tiny_model(folder.parent / "model")
    (folder / "s.toml").write_text(SWEEP.format(model=model))
    return read_sweep(folder / "s.toml", changes=Changes(out=folder / "out"))


def test_runs_side_by_side_are_those_that_go_one_by_one(tmp_path: Path) -> None:
    one_by_one, side_by_side, said = sweep_in(tmp_path / "one"), sweep_in(tmp_path / "two"), list[str]()
    alone = [event for event in carry_out(one_by_one) if isinstance(event, Ended)]
    together = list(carry_out(side_by_side, say=said.append, executor=InTurn()))
    assert said[0] == "3 runs by 2 workers, side by side"
    assert sorted(line.partition(" ")[0] for line in said[1:]) == ["bad", "good", "other"]
    ended = [event for event in together if isinstance(event, Ended)]
    assert _without_seconds(results(side_by_side, ended)) == _without_seconds(results(one_by_one, alone))
    assert {end.run.point.name for end in ended if end.problem} == {"bad"}
    assert all("Traceback" in end.traceback for end in ended if end.problem)
    for name in ("good", "other"):
        plans = [(sweep.out / name / "plan.json").read_bytes() for sweep in (one_by_one, side_by_side)]
        assert plans[0] == plans[1]
    again = InTurn()
    assert len([event for event in carry_out(side_by_side, executor=again) if isinstance(event, Ended)]) == 3
    assert len(again.asked) == 1, "what is done is read from its folder"


def _without_seconds(table: dict[str, Any]) -> dict[str, Any]:
    return {**table, "rows": [{key: value for key, value in row.items() if key != "seconds"} for row in table["rows"]]}


def test_a_folder_that_the_workers_do_not_share_is_refused_before_any_run(tmp_path: Path) -> None:
    class Apart(InTurn):
        def everywhere(self, job: Job[Any], *arguments: Any) -> list[Future[Any]]:
            return super().everywhere(job, "another folder")

    sweep = sweep_in(tmp_path / "one")
    with pytest.raises(PdtrimError) as error:
        list(carry_out(sweep, executor=Apart()))
    assert str(error.value) == f"a worker does not see what is in {sweep.out}: put it where all machines of the cluster see it"
    assert not list(sweep.out.iterdir())


def test_a_run_whose_worker_cannot_do_it_is_a_failure_like_any_other(tmp_path: Path) -> None:
    class Lost(InTurn):
        def submit(self, job: Job[Any], *arguments: Any, near: object = None) -> Future[Any]:
            future: Future[Any] = Future()
            future.set_exception(PdtrimError("3 workers were lost at the same work"))
            return future

    ended = list(carry_out(sweep_in(tmp_path / "one"), executor=Lost()))
    assert [end.problem for end in ended if isinstance(end, Ended)] == ["3 workers were lost at the same work"] * 3
