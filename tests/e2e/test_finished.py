"""A finished run is not carried out again: it is printed as it is until something has changed that it was made from."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import Cli

QUICK = ("--set", "prune.merges=false")


def stamps(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Return when each file of a folder was changed, and what is in it."""
    return {str(file): (file.stat().st_mtime_ns, file.read_bytes()) for file in folder.rglob("*") if file.is_file()}


def outcome(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "outcome.json").read_text())
    return found


def test_the_same_command_prints_what_a_finished_run_has_and_changes_no_file(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    first = cli("run", recipe, "--out", "r", *QUICK)
    before = stamps(tmp_path / "r")
    again = cli("run", recipe, "--out", "r", *QUICK)
    assert (again.code, again.out) == (0, first.out)
    assert again.err.startswith("note: r is finished")
    assert "open the model" not in again.err
    assert json.loads(cli("run", recipe, "--out", "r", *QUICK, "--json").out) == outcome(tmp_path / "r")
    assert stamps(tmp_path / "r") == before


def test_a_finished_run_is_printed_in_two_seconds_without_torch(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    assert cli("run", recipe, "--out", "r", *QUICK).code == 0
    words = ["pdtrim-core", "run", str(recipe), "--out", "r", *QUICK]
    code = (
        f"import sys, time\nfrom pdtrim_core.cli import main\nsys.argv = {words}\n"
        "try:\n    main()\nfinally:\n"
        "    print(time.process_time(), not {'torch', 'transformers'} & sys.modules.keys(), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "decode loses 2 of 6 blocks" in done.stdout
    # Of the processor: the machine may be busy with other things.
    seconds, light = done.stderr.splitlines()[-1].split()
    assert (float(seconds) < 2, light) == (True, "True")


def test_a_page_that_a_finished_run_has_is_named_and_not_made_again(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    words = ("run", recipe, "--out", "r", *QUICK, "--set", 'report=["html"]')
    assert cli(*words).code == 0
    before = stamps(tmp_path / "r")
    again = cli(*words)
    assert again.out == "report: r/report.html\n"
    assert stamps(tmp_path / "r") == before
    # Another report of the same run needs no new run.
    assert "decode loses 2 of 6 blocks" in cli("run", recipe, "--out", "r", *QUICK).out
    assert stamps(tmp_path / "r") == before


@pytest.mark.parametrize("change", ["model", "data", "plan", "scores", "fidelity"])
def test_what_has_changed_is_seen(recipe: Path, cli: Cli, tmp_path: Path, tiny_checkpoint: Path, change: str) -> None:
    model, data = tmp_path / "model", tmp_path / "items.jsonl"
    shutil.copytree(tiny_checkpoint, model)
    line = '{"query": "The sky is", "choices": ["blue %d", "green"], "gold": 0}\n'
    data.write_text("".join(line % number for number in range(20)))
    words = ["run", recipe, "--out", "r", *QUICK, "--set", f"model.path={model}"]
    words += ["--set", f'calibration={{use="jsonl", files=["{data}"], samples=8, held_out=4}}']
    assert cli(*words).code == 0
    assert "is finished" in cli(*words).err
    if change == "model":
        config = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    elif change == "data":
        data.write_text(data.read_text().replace("blue", "grey"))
    elif change == "plan":
        (tmp_path / "r" / "plan.json").unlink()
    elif change == "scores":
        (tmp_path / "r" / "scores.json").write_text("{}")
    else:
        words += ["--set", "evaluation.fidelity=true", "--set", "evaluation.answer_tokens=4"]
    again = cli(*words)
    assert "is finished" not in again.err
    if change == "data":
        assert "holds measurements made with other data" in again.err
        return
    assert again.code == 0, again.err
    assert ("the model is " in again.err) is (change == "model")
    assert (tmp_path / "r" / "plan.json").is_file()
    assert "block" in json.loads((tmp_path / "r" / "scores.json").read_text())
    assert "is finished" in cli(*words).err


def test_an_edited_recovery_or_exporter_is_carried_out(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    plugin = (
        "from pdtrim_core.api import Exporter, hookimpl\n\nclass Own(Exporter):\n    name = 'own'\n\n"
        "    def export(self, outcome, model, out):\n        (out / 'own.txt').write_text('one')\n"
        "        return [out / 'own.txt']\n\n"
        "@hookimpl\ndef pdtrim_exporters():\n    yield Own\n"
    )
    (tmp_path / "own.py").write_text(plugin)
    recipe.write_text('plugins = ["own.py"]\nexporter = ["plan", "own"]\n' + recipe.read_text())
    assert cli("run", recipe, "--out", "r", *QUICK).code == 0
    (tmp_path / "own.py").write_text(plugin.replace("'one'", "'two'"))
    assert "is finished" not in cli("run", recipe, "--out", "r", *QUICK).err
    assert (tmp_path / "r" / "own.txt").read_text() == "two"
    (tmp_path / "r" / "own.txt").unlink()
    assert "is finished" not in cli("run", recipe, "--out", "r", *QUICK).err
    assert (tmp_path / "r" / "own.txt").read_text() == "two"


def test_a_run_that_goes_on_adds_to_what_it_had_spent(recipe: Path, cli: Cli, tmp_path: Path) -> None:
    words = ("run", recipe, "--out", "r", *QUICK)
    assert cli(*words).code == 0
    state = json.loads((tmp_path / "r" / "state.json").read_text())
    whole = outcome(tmp_path / "r")["candidates"]
    state["seconds"]["search"] = 1000.0
    (tmp_path / "r" / "state.json").write_text(json.dumps({**state, "made_from": {}, "files": {}}))
    (tmp_path / "r" / "outcome.json").unlink()
    assert cli(*words).code == 0
    found = outcome(tmp_path / "r")
    assert 1000 < found["seconds"]["search"] < 1100
    assert found["candidates"]["measured"] == whole["measured"]
    assert found["candidates"]["remembered"] > whole["remembered"]
    row = json.loads(cli("compare", "r", "--json").out)["rows"][0]
    assert row["pruning_seconds"] > 1000
    assert " 10" in cli("show", "r").out.split("remembered; ")[0]
    assert cli(*words, "--fresh").code == 0
    assert outcome(tmp_path / "r")["seconds"]["search"] < 1000
    assert outcome(tmp_path / "r")["candidates"] == whole
