"""What commands tell while they work: objects of JSON for machines, or nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e


def test_a_machine_reads_each_line_of_a_run(cli: Cli, recipe: Path) -> None:
    merging = ("--set", "prune.merge_threshold={quantile = 0.5}", "--set", "distiller.tokens=2000", "--set", "distiller.lr=5e-3")
    fidelity = ("--set", "evaluation.fidelity=true", "--set", "evaluation.answer_tokens=4")
    done = cli("run", recipe, "--out", "r", "--log-format", "json", *merging, *fidelity)
    assert done.code == 0, done.err
    entries = [json.loads(line) for line in done.err.splitlines()]
    events = [entry["event"] for entry in entries]
    assert (events[0], events[-1]) == ("run_started", "run_ended")
    assert {"step_started", "step_finished", "candidate", "merge", "fidelity", "advanced"} <= set(events)
    begun = [entry["step"] for entry in entries if entry["event"] == "step_started"]
    assert begun == [step for step in entries[0]["steps"] if step in begun]
    assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    assert "decode loses 2 of 6 blocks" in done.out


def test_a_quiet_run_tells_its_results_alone_and_errors_all_the_same(cli: Cli, recipe: Path) -> None:
    done = cli("run", recipe, "--out", "r", "--quiet")
    assert (done.code, done.err) == (0, "")
    assert "decode loses 2 of 6 blocks" in done.out
    done = cli("run", recipe, "--out", "r", "-q", "--set", "seed=2")
    assert done.code == 1
    assert done.err.startswith("error: r holds a run of another recipe")


@pytest.mark.parametrize("asked", [("--log-format", "json"), ("--log-format=json",)])
def test_a_machine_reads_errors_and_warnings_too(cli: Cli, recipe: Path, asked: tuple[str, ...]) -> None:
    for wrong in ("nope.toml", recipe):
        done = cli("run", wrong, "--out", "r", *asked, "--set", "model.device=cpu", "--set", "prune.blocks=99")
        assert done.code in (1, 2)
        entries = [json.loads(line) for line in done.err.splitlines()]
        assert entries[-1]["event"] == "error"
        assert not entries[-1]["text"].startswith("error")
        assert [entry["time"] for entry in entries] == sorted(entry["time"] for entry in entries)
    assert entries[0]["event"] == "warning"
    done = cli("run", recipe, *asked, "--banana")
    assert json.loads(done.err)["text"].startswith("pdtrim-core run has no option --banana")


def test_a_quiet_command_warns_of_nothing(cli: Cli, recipe: Path) -> None:
    loud = cli("run", recipe, "--out", "r", "--set", "model.device=cpu", "--set", "prune.blocks=99")
    quiet = cli("run", recipe, "--out", "r", "--set", "model.device=cpu", "--set", "prune.blocks=99", "-q")
    assert loud.err.startswith("warning: ")
    assert quiet.err.startswith("error: ")


def test_a_sweep_tells_the_same_ways(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(f'sweep = 1\nrecipe = "{recipe}"\n[grid]\nseed = [1, 2]\n')
    done = cli("sweep", "sweep.toml", "--log-format", "json")
    entries = [json.loads(line) for line in done.err.splitlines()]
    assert [entry["event"] for entry in entries].count("run_ended") == 2
    assert sum(entry["event"] == "said" for entry in entries) == 2
    assert cli("sweep", "sweep.toml", "--quiet").err == ""


def test_all_commands_that_take_long_tell_what_they_do_as_they_are_asked_to(
    cli: Cli, recipe: Path, tiny_checkpoint: Path
) -> None:
    assert cli("run", recipe, "--out", "r", "-q").code == 0
    quick = ("--forward", "8", "--prompt-lengths", "8", "--batches", "1", "--contexts", "8", "--repeats", "1")
    commands = {
        "export": ("r", "--to", "checkpoints"),
        "apply": ("r/plan.json", tiny_checkpoint, "--to", "checkpoints"),
        "eval": ("r", "--fidelity", "--answer-tokens", "4", "--variants", "dense,prefill,unrecovered"),
        "bench": ("r", *quick),
        "score": (recipe,),
    }
    for name, words in commands.items():
        out = ("--out", f"quiet-{name}") if name in ("export", "apply", "bench") else ()
        quiet = cli(name, *words, *out, "--quiet")
        assert (quiet.code, quiet.err) == (0, ""), name
        out = ("--out", f"told-{name}") if out else ()
        told = cli(name, *words, *out, "--log-format", "json")
        entries = [json.loads(line) for line in told.err.splitlines()]
        assert told.code == 0, name
        assert entries, name
        assert quiet.out.replace("quiet-", "told-") == told.out or name == "bench"
