"""`pdtrim-core eval` and the harness' own command line, from the outside: tables, files, and one line for each mistake."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.results.task_results import results_in

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed")
pytestmark = pytest.mark.e2e
ITEMS = [
    {"id": f"piqa/{number}", "query": f"Question: {number}?\nAnswer:", "choices": ["one", "two"], "gold": number % 2}
    for number in range(4)
]


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert cli("run", recipe, "--set", "searcher.t_min=9").code == 0
    return tmp_path / "runs" / "recipe"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    (tmp_path / "data" / "piqa").mkdir(parents=True)
    (tmp_path / "data" / "piqa" / "test.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    return tmp_path / "data"


def test_a_run_is_evaluated_and_found_again(cli: Cli, run: Path, data: Path) -> None:
    words = ("eval", run, "--tasks", "piqa", "--variants", "staged,dense", "--data", data)
    first = cli(*words)
    assert first.code == 0, first.err
    number = r"\d\.\d{4} \+- \d\.\d{4}"
    assert re.search(rf"^task +metric +items +staged +dense$\npiqa +acc +4 +{number} +{number}$", first.out, re.MULTILINE)
    assert "staged: the first token is decode's" in first.out
    assert first.err.splitlines()[-2:] == ["piqa, staged: running, 1 of 2", "piqa, dense: running, 2 of 2"]
    again = cli(*words)
    assert again.out == first.out
    assert again.err.splitlines()[-2:] == ["piqa, staged: known", "piqa, dense: known"]
    assert {result.variant for result in results_in(run)} == {"staged", "dense"}
    (found, _) = json.loads(cli(*words, "--json").out)
    assert found["metrics"]["acc"].keys() == {"value", "error", "higher_is_better"}
    assert Path(found["file"]).is_file()


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (("--tasks", "piqa", "--variants", "stage"), "unknown variant 'stage'; did you mean 'staged'?"),
        (("--tasks", ","), "--tasks is empty: name tasks such as arc_easy,piqa, or say --fidelity"),
        (("--tasks", "piqua"), "unknown task 'piqua'; did you mean 'piqa'?"),
        (("--tasks", "rte"), "test.jsonl does not exist: rte is read from there; leave out --data to take it from the hub"),
        (("--tasks", "humaneval"), "allow it with --confirm-run-unsafe-code"),
        (("--tasks", "piqa", "--apply-chat-template"), "has no chat template: leave out --apply-chat-template"),
        (("--tasks", "piqa", "--num-fewshot", "2"), "so there are no few-shot examples for piqa: leave out --num-fewshot"),
    ],
)
def test_a_mistake_is_one_line(cli: Cli, run: Path, data: Path, words: tuple[Any, ...], problem: str) -> None:
    done = cli("eval", run, "--data", data, *words)
    assert done.code == 1
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert problem in line


def test_a_broken_line_of_a_file_is_named(cli: Cli, run: Path, data: Path) -> None:
    file = data / "piqa" / "test.jsonl"
    file.write_text(file.read_text() + json.dumps({**ITEMS[0], "choices": ["one", ""]}) + "\n")
    done = cli("eval", run, "--tasks", "piqa", "--data", data)
    assert done.err.splitlines()[-1] == f"error: {file}, line 5: number 1 of choices is empty"


def test_a_task_of_the_hub_without_a_network_says_what_to_do(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import lm_eval.tasks

    # Reading all of the harness' thousands of tasks takes long.
    folder = Path(lm_eval.tasks.__file__).parent / "piqa"
    hub = lm_eval.tasks.TaskManager(include_defaults=False, include_path=folder)
    monkeypatch.setattr("pdtrim_core.harness.tasks.hub_tasks", lambda: hub)
    done = cli("eval", run, "--tasks", "piqa")
    assert done.code == 1
    assert re.search(
        r"error: the hub did not give the items of 'piqa' \(.*\): read it from files with --data DIR, or connect to the network",
        done.err,
    )
    assert "lm-evaluation-harness has no task 'piqua'; did you mean 'piqa'?" in cli("eval", run, "--tasks", "piqua").err


def test_a_run_of_another_version_and_one_of_other_weights_are_refused(cli: Cli, run: Path, data: Path) -> None:
    words = ("eval", run, "--tasks", "piqa", "--data", data)
    file = run / "outcome.json"
    outcome = json.loads(file.read_text())
    file.write_text(json.dumps({**outcome, "environment": {**outcome["environment"], "weights": "f" * 64}}))
    assert "is a run on" in cli(*words).err
    file.write_text(json.dumps({**outcome, "format": 99}))
    assert "has outcome format 99, this version reads 2: run its recipe again" in cli(*words).err


def test_a_replaced_model_has_no_stages(cli: Cli, recipe: Path, data: Path, tmp_path: Path) -> None:
    recipe.write_text(recipe.read_text().partition("[searcher]")[0])
    assert cli("run", recipe, "--set", "pruner.use=slicegpt", "--set", "pruner.window=32").code == 0
    words = ("eval", tmp_path / "runs" / "recipe", "--tasks", "piqa", "--data", data)
    assert "its pruner replaced the whole of" in cli(*words).err
    assert cli(*words, "--stage", "unified").code == 0


def test_without_the_harness_the_extra_is_named(cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    done = cli("eval", tmp_path, "--tasks", "piqa")
    assert done.err == (
        "error: evaluating needs lm-evaluation-harness, which is not installed: pip install 'pdtrim-core[eval]'\n"
    )


def test_the_harness_own_command_line_knows_the_model(run: Path, tmp_path: Path) -> None:
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(item) + "\n" for item in ITEMS))
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\ndataset_kwargs: {data_files: {test: own.jsonl}}\ntest_split: test\n"
        "output_type: multiple_choice\ndoc_to_text: query\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]\nmetadata: {version: 1}\n"
    )
    words = ["--model", "pdtrim", "--model_args", f"run={run},stage=staged,first_token=decode", "--tasks", "own.yaml"]
    done = subprocess.run(
        [sys.executable, "-m", "pdtrim_core.harness", *words],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path / "hf")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"\|own *\|.*\|acc *\|.*\|0\.\d+", done.stdout)
