"""Sweeps with benchmarks: every run is evaluated on the model that they share, failures are told, and runs stand side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import PdtrimError, RecipeError
from pdtrim_core.pipeline.open_run import LoadedRun, load_run
from pdtrim_core.pipeline.prepare import open_model
from pdtrim_core.pipeline.run_cache import RunCache
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric
from pdtrim_core.sweeping import evaluating
from pdtrim_core.sweeping.evaluate_table import Evaluate
from pdtrim_core.sweeping.evaluating import variants_of
from pdtrim_core.sweeping.one_run import Ended
from pdtrim_core.sweeping.running import Begins, carry_out, results
from pdtrim_core.sweeping.sweep import Changes, Sweep, read_sweep
from pdtrim_core.testing.contracts.small_run import small_run, tiny_host

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdtrim_core.results.task_results import Variant

SWEEP = """\
sweep = 1
[recipe]
model = "tiny:llama"
prune = {blocks = 2, merges = false}
objective = "margin"
calibration = {samples = 8, held_out = 4}
evaluation = {fidelity = false}
[grid]
searcher.use = ["random", "greedy"]
[evaluate]
tasks = ["piqa", "rte"]
variants = ["staged", "dense"]
limit = 4
"""


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    (tmp_path / "s.toml").write_text(SWEEP)
    return read_sweep(tmp_path / "s.toml", tiny_host(), Changes(out=tmp_path / "out"))


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[LoadedRun, Evaluate]]:
    """Keep what is asked of the harness, which is not started."""
    seen: list[tuple[LoadedRun, Evaluate]] = []

    def evaluate(
        run: LoadedRun, wanted: Evaluate, variants: Sequence[Variant], say: Callable[[str], None], *, runs_code: bool
    ) -> None:
        assert (tuple(variants), runs_code) == (wanted.variants, False)
        say(f"piqa of {run.path.name}")
        seen.append((run, wanted))

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    monkeypatch.setattr(evaluating, "check", lambda wanted, runs_code: None)
    return seen


def test_every_run_is_evaluated_when_it_is_done(sweep: Sweep, asked: list[tuple[LoadedRun, Evaluate]]) -> None:
    said: list[str] = []
    events = []
    for event in carry_out(sweep, say=said.append):
        events.append((type(event), len(asked)))
        assert not isinstance(event, Ended) or event.problem == ""
    assert events == [(Begins, 0), (Ended, 1), (Begins, 1), (Ended, 2)]
    assert said == [f"piqa of {run.path.name}" for run, _ in asked]
    wanted = asked[0][1]
    assert (wanted.tasks, wanted.variants, wanted.limit) == (("piqa", "rte"), ("staged", "dense"), 4)
    list(carry_out(sweep))
    assert len(asked) == 4, "runs that were done before are evaluated too, by what the harness does not know yet"


def test_the_model_is_opened_once(sweep: Sweep, asked: list[tuple[LoadedRun, Evaluate]], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def count(*given: Any) -> Any:
        opened.append(given)
        return open_model(*given)

    monkeypatch.setattr("pdtrim_core.pipeline.run_inputs.open_model", count)
    monkeypatch.setattr("pdtrim_core.pipeline.open_run.open_model", count)
    list(carry_out(sweep))
    models = [run.dense for run, _ in asked]
    assert models[0] is models[1]
    assert len(opened) == 1


def test_runs_opened_apart_share_nothing_and_with_shared_they_do(sweep: Sweep, asked: list[Any]) -> None:
    list(carry_out(sweep))
    paths, host, shared = [run.recipe.out for run in sweep.runs], tiny_host(), RunCache()
    assert load_run(paths[0], host).dense is not load_run(paths[1], host).dense
    assert load_run(paths[0], host, shared).dense is load_run(paths[1], host, shared).dense


@pytest.mark.parametrize(
    ("error", "words"), [(PdtrimError("no such folder"), "no such folder"), (ZeroDivisionError("oh"), "ZeroDivisionError: oh")]
)
def test_an_evaluation_that_fails_is_told_and_stops_no_other(
    sweep: Sweep, asked: list[Any], error: Exception, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(evaluating, "evaluate", fail)
    ended = [event for event in carry_out(sweep) if isinstance(event, Ended)]
    assert [end.problem for end in ended] == [words, words]
    assert all(end.outcome is not None and "Traceback" in end.traceback for end in ended)
    assert [row["state"] for row in results(sweep, ended)["rows"]] == ["done", "done"]


def test_tasks_are_checked_before_any_run_begins(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(wanted: Evaluate, *, runs_code: bool) -> None:
        assert not runs_code
        raise PdtrimError(f"unknown task '{wanted.tasks[0]}'")

    monkeypatch.setattr(evaluating, "check", refuse)
    with pytest.raises(PdtrimError, match="unknown task 'piqa'"):
        next(carry_out(sweep))
    assert not sweep.out.exists()


def test_a_sweep_without_the_table_evaluates_nothing(sweep: Sweep, asked: list[Any]) -> None:
    list(carry_out(replace(sweep, evaluate=None)))
    assert asked == []


def test_a_model_that_was_replaced_has_one_side_for_all_that_are_pruned(tmp_path: Path) -> None:
    outcome, host = small_run()[0], tiny_host()
    run = LoadedRun(tmp_path, outcome, None, host)  # type: ignore[arg-type]
    wanted: list[Variant] = ["staged", "unified", "dense"]
    assert variants_of(run, wanted) == wanted
    assert variants_of(replace(run, outcome=replace(outcome, saved_plan=None)), wanted) == ["unified", "dense"]


def test_only_a_run_with_recovery_has_a_pair_before_it(tmp_path: Path) -> None:
    outcome, host = small_run()[0], tiny_host()
    recovered = replace(outcome, recovery=(RecoveryResult("fold", Metric(0.7), Metric(0.4), 8, 512, 1.5, kept=True, changed={}),))
    wanted: list[Variant] = ["unrecovered", "staged"]
    assert variants_of(LoadedRun(tmp_path, recovered, None, host), wanted) == wanted  # type: ignore[arg-type]
    assert variants_of(LoadedRun(tmp_path, outcome, None, host), wanted) == ["staged"]  # type: ignore[arg-type]


def test_data_may_stand_for_the_folder_of_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP + 'data = "${data}/small"\n')
    found = read_sweep(path, tiny_host(), Changes(data=tmp_path), need_data=True)
    assert found.evaluate is not None
    assert found.evaluate.data == f"{tmp_path}/small"
    assert read_sweep(path, tiny_host()).evaluate is not None
    with pytest.raises(RecipeError, match=r"evaluate.data: \$\{data\} stands for a folder with data: name it with --data DIR"):
        read_sweep(path, tiny_host(), need_data=True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("tasks = []", "evaluate.tasks: name at least one"),
        (
            'tasks = ["piqa"]\nvariants = ["both"]',
            "must be 'staged', 'unified', 'prefill', 'decode', 'unrecovered', 'unquantized', 'unselected' or 'dense' (got",
        ),
        ('tasks = ["piqa"]\nvariants = []', "evaluate.variants: name at least one"),
        ('tasks = ["piqa"]\nlimit = 0', "evaluate.limit: must be greater than 0 (got 0)"),
        ('tasks = ["piqa"]\ntask = 1', "evaluate.task: unknown key; did you mean 'tasks'?"),
        ("limit = 3", "evaluate.tasks: required key is missing"),
    ],
)
def test_a_bad_table_is_a_problem_of_the_file(line: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "s.toml"
    path.write_text(SWEEP.partition("[evaluate]")[0] + "[evaluate]\n" + line)
    with pytest.raises(RecipeError) as caught:
        read_sweep(path, tiny_host())
    assert len(caught.value.problems) == 1
    assert words in caught.value.problems[0]


RUNS = """\
sweep = 1
recipe = {model = "tiny:llama", prune = {blocks = 2}}
[[runs]]
name = "one"
variants = ["unified"]
[[runs]]
name = "two"
"""


def test_a_run_may_have_variants_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(RUNS + '[evaluate]\ntasks = ["piqa"]\nvariants = ["dense", "staged"]\n')
    sweep = read_sweep(tmp_path / "s.toml", tiny_host())
    assert [run.point.variants for run in sweep.runs] == [("unified",), ("dense", "staged")]
    (tmp_path / "s.toml").write_text(RUNS)
    with pytest.raises(RecipeError, match=r"runs.0.variants: there is no table \[evaluate\]"):
        read_sweep(tmp_path / "s.toml", tiny_host())


def test_consent_to_run_programs_comes_from_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(SWEEP)
    assert read_sweep(tmp_path / "s.toml", tiny_host(), Changes(runs_code=True)).runs_code
    (tmp_path / "s.toml").write_text(SWEEP + "confirm_run_unsafe_code = true\n")
    with pytest.raises(RecipeError, match=r"evaluate\.confirm_run_unsafe_code: unknown key"):
        read_sweep(tmp_path / "s.toml", tiny_host())
