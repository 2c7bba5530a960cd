"""`bench` and `compare` from the outside: tables, files, and one line for every bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.results.task_results import ItemAnswer, Metric, TaskResult, write_result
from pdtrim_core.testing.contracts.small_run import small_run

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
SMALL = ("--forward", 16, "--prompt-lengths", 8, "--batches", "1,2", "--contexts", 8, "--repeats", 1, "--threads", 1)


@pytest.fixture
def run(cli: Cli, recipe: Path, tmp_path: Path) -> Path:
    done = cli("run", recipe, "--out", "r")
    assert done.code == 0, done.err
    return tmp_path / "r"


def evaluated(path: Path, values: dict[str, list[float]], **changes: Any) -> Path:
    path.mkdir()
    (path / "outcome.json").write_text(replace(small_run()[0], **changes).to_json())
    for task, of_task in values.items():
        answers = tuple(ItemAnswer(str(number), {"acc": value}) for number, value in enumerate(of_task))
        mean = sum(of_task) / len(of_task)
        write_result(path, TaskResult(task, "staged", {"acc": Metric(mean, 0.25)}, "acc", answers, {"limit": 4}, {}, 1.0))
    return path


def test_bench_times_a_run_and_writes_its_file(cli: Cli, run: Path) -> None:
    done = cli("bench", "r", *SMALL)
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].endswith("float32 on cpu, 1 threads; the first token is made by decode")
    assert lines[2].split() == ["batch", "tokens", "model", "dense", "pruned", "measured", "quartiles", "ideal"]
    assert [line.split(",")[0] for line in lines[3:] if line[:1] not in ("", " ")][:3] == ["forward", "prefill", "decode"]
    assert done.out.isascii()
    assert done.err.splitlines()[0] == "[1/4] forward, 16 tokens"
    found = json.loads((run / "bench.json").read_text())
    assert (found["settings"]["batches"], found["dtype"], found["random_weights"]) == ([1, 2], "float32", False)
    assert cli("compare", "r").code == 0


def test_bench_runs_in_the_number_format_that_is_asked_for(cli: Cli, run: Path) -> None:
    done = cli("bench", "r", *SMALL, "--dtype", "bfloat16", "--json", "--out", "b.json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["dtype"] == "bfloat16"
    assert found == json.loads(Path("b.json").read_text())
    dense = cli("bench", "r", *SMALL, "--json")
    assert json.loads(dense.out)["footprints"][0]["weights"] == 2 * found["footprints"][0]["weights"]


def test_bench_takes_the_counts_of_a_run_to_another_shape(cli: Cli, run: Path, tiny_checkpoint: Path) -> None:
    done = cli("bench", "r", "--random-weights", tiny_checkpoint / "config.json", *SMALL, "--json", "--out", "b.json")
    assert done.code == 0, done.err
    found = json.loads(done.out)
    assert found["random_weights"]
    assert len(found["plan"]["decode"]) == 2
    assert cli("bench", "--random-weights", tiny_checkpoint, "--blocks", 1, *SMALL).code == 0
    assert not (Path("bench.json")).exists()


def test_an_interrupted_bench_keeps_what_it_has(cli: Cli, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pdtrim_core.timing.latency import LatencyBench

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(LatencyBench, "footprints", stop)
    done = cli("bench", "r", *SMALL)
    assert (done.code, done.err.splitlines()[-1][:12]) == (130, "interrupted;")
    monkeypatch.undo()
    monkeypatch.chdir(run.parent)
    again = cli("bench", "r", *SMALL)
    assert (again.code, again.err.splitlines()[0]) == (0, "memory")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        ((), "name the folder of a run, or a shape with --random-weights"),
        (("r", "--blocks", 2), "--blocks: goes with --random-weights alone; a run has a plan"),
        (
            ("r", "--prompt-lengths", "1,x"),
            "--prompt-lengths: must be positive whole numbers with commas between them (got '1,x')",
        ),
        (("r", "--batches", "0"), "--batches: must be positive whole numbers"),
        (("r", "--dtype", "bfloat"), "--dtype: there is no number format 'bfloat'; did you mean 'bfloat16'?"),
        (("r", "--forward", -1), "--forward: must be 0 or more (got -1)"),
        (("--random-weights", "x", "--plan", "p", "--blocks", 1), "--blocks and --plan: a plan says how many blocks go"),
        (("r", "--random-weights", "x", "--prefill-blocks", 1), "--prefill-blocks: goes with --blocks"),
    ],
)
def test_options_of_bench_that_do_not_go_together_are_refused(cli: Cli, words: tuple[Any, ...], error: str) -> None:
    done = cli("bench", *words)
    assert done.code == 2
    assert error in done.err


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (("nothing",), "error: nothing is not a folder: name the folder of a run"),
        (("--random-weights", "lama-3.1-8b"), "error: there is no shape 'lama-3.1-8b'"),
        (("--random-weights", "TINY", "--blocks", 6), "has 6 blocks: decode can lose 1 to 5 of them"),
        (
            ("--random-weights", "TINY", "--blocks", 1, "--contexts", 999),
            "error: --forward: 1024 tokens do not fit in the window",
        ),
    ],
)
def test_what_bench_cannot_do_is_one_line(cli: Cli, words: tuple[Any, ...], error: str, tiny_checkpoint: Path) -> None:
    done = cli("bench", *(tiny_checkpoint if word == "TINY" else word for word in words))
    assert (done.code, done.out) == (1, "")
    assert error in done.err
    assert len(done.err.splitlines()) == 1


def test_compare_prints_one_table(cli: Cli, tmp_path: Path) -> None:
    evaluated(tmp_path / "one", {"piqa": [1, 0, 1, 0], "rte": [1, 1, 1, 0]})
    evaluated(tmp_path / "other", {"piqa": [1, 1, 1, 0], "rte": [1, 0, 1, 0]})
    done = cli("compare", "one", "other")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0].split()[:4] == ["method", "piqa", "rte", "average"]
    assert lines[1].split()[:4] == ["one", "50.0", "+-", "25.0"]
    assert lines[2].split()[:5] == ["other", "75.0", "(+25.0", "+-", "25.0)"]
    assert lines[3].startswith("note: in brackets: the difference to the first row")
    assert done.out.isascii()
    assert cli("compare", "one", "other", "--tasks", "rte", "--markdown").out.startswith("| method | rte | prefill removed |")
    assert r"\begin{tabular}" in cli("compare", "one", "other", "--latex").out
    assert [row["name"] for row in json.loads(cli("compare", "one", "other", "--json").out)["rows"]] == ["one", "other"]


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        ((), 1, "error: name the folders of the runs to compare"),
        (("one", "--variants", "stagd"), 2, "--variants: there is no variant 'stagd'; did you mean 'staged'?"),
        (("one", "--variants", ","), 2, "--variants: name at least one"),
        (("one", "--json", "--latex"), 2, "--json, --markdown, --latex: choose one"),
        (("one", "nothing"), 1, "error: nothing is not a folder"),
        (("one", "--tasks", "pica"), 1, "error: none of these rows has a result of the task 'pica'; did you mean 'piqa'?"),
    ],
)
def test_what_compare_cannot_do_is_said(cli: Cli, tmp_path: Path, words: tuple[str, ...], code: int, error: str) -> None:
    evaluated(tmp_path / "one", {"piqa": [1, 0, 1, 0]})
    done = cli("compare", *words)
    assert (done.code, done.out) == (code, "")
    assert error in done.err


SWEEP = """\
sweep = 1
about = "Two searchers"
out = "s"
recipe = "recipe.toml"
[[runs]]
name = "random"
set.searcher = { use = "random", tries = 2 }
[[runs]]
name = "greedy"
set.searcher = "greedy"
[evaluate]
tasks = ["piqa", "rte"]
variants = ["staged", "dense"]
"""


def test_a_sweep_with_benchmarks_ends_with_the_table_of_compare(
    cli: Cli, recipe: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pdtrim_core.sweeping import evaluating

    def evaluate(run: Any, wanted: Any, variants: Any, say: Any, *, runs_code: bool) -> None:
        assert not runs_code
        for variant in evaluating.variants_of(run, variants):
            for task in wanted.tasks:
                good = variant == "dense" or run.path.name == "greedy"
                answers = tuple(ItemAnswer(str(n), {"acc": float(good or n > 1)}) for n in range(4))
                value = Metric(sum(answer.values["acc"] for answer in answers) / 4, 0.1)
                write_result(run.path, TaskResult(task, variant, {"acc": value}, "acc", answers, {"limit": 4}, {}, 1.0))
                say(f"{task}, {variant}: running")

    monkeypatch.setattr(evaluating, "check", lambda wanted, runs_code: None)
    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    recipe.with_name("sweep.toml").write_text(SWEEP)
    done = cli("sweep", "sweep.toml")
    assert done.code == 0, done.err
    lines = done.out.splitlines()
    assert lines[0] == "Two searchers"
    assert lines[1].split()[:3] == ["method", "piqa", "rte"]
    assert [line.split()[0] for line in lines[2:5]] == ["dense", "random", "greedy"]
    assert lines[3].split()[:4] == ["random", "50.0", "(-50.0", "+-"]
    assert "piqa, staged: running" in done.err
    found = json.loads(cli("sweep", "sweep.toml", "--json").out)
    assert [row["run"] for row in found["rows"]] == ["random", "greedy"]
    assert [row["name"] for row in found["comparisons"][0]["rows"]] == ["dense", "random", "greedy"]

    def fail(*_: object, **__: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(evaluating, "evaluate", fail)
    again = cli("sweep", "sweep.toml")
    assert again.code == 1
    assert "greedy: OSError: the disk is full" in again.err
    assert again.out == done.out
