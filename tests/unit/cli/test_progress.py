"""What is written into a log while a run works: never silent for long."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from pdtrim_core.cli.heartbeat import Heartbeat
from pdtrim_core.cli.logs import QuietDisplay
from pdtrim_core.cli.progress import LineDisplay, LiveDisplay, duration
from pdtrim_core.cli.times_column import clock
from pdtrim_core.data.readings import Candidate, Reading
from pdtrim_core.plan.plan import Plan
from pdtrim_core.results.recovery import RecoveryResult
from pdtrim_core.results.task_results import Metric, TaskResult


def until(condition: Callable[[], bool], seconds: float = 10.0) -> None:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_a_step_that_takes_long_says_where_it_stands() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_step_started("search", None)
    display.pdtrim_candidate_measured(Candidate(1, Plan(), Reading(50.0, 0.5), 50.0, remembered=False, seconds=1.0))
    until(lambda: stream.getvalue().count("still: search: ") >= 2)
    display.pdtrim_step_finished("search", 1.0)
    display.pdtrim_run_ended()
    lines = stream.getvalue().splitlines()
    assert lines[0] == "run m -> out"
    assert lines[1].startswith("still: search: 0.")
    assert lines[1].endswith(" s, 1 candidate, best 50.00")
    assert "search: 1.0 s, 1 candidate, best 50.00" in lines


def test_a_run_that_is_over_says_nothing_more() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.02)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_run_ended()
    time.sleep(0.1)
    before = stream.getvalue()
    time.sleep(0.1)
    assert stream.getvalue() == before


def test_what_is_no_step_of_a_run_is_told_too_and_runs_inside_it_do_not_end_it() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    with display.working():
        display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
        display.pdtrim_run_ended()
        display.say("piqa, dense: running")
        until(lambda: "still: piqa, dense: running: 0." in stream.getvalue())


def test_a_run_that_ends_before_it_began_takes_nothing_from_what_is_around_it() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    with display.working():
        display.pdtrim_run_ended()
        display.say("evaluating")
        until(lambda: "still: evaluating: 0." in stream.getvalue())


def test_nothing_is_said_while_others_speak() -> None:
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(1), seconds=0.5)
    with heartbeat:
        for _ in range(10):
            time.sleep(0.02)
            heartbeat.said()
    assert beats == []


FOLD = RecoveryResult("fold", Metric(0.716), Metric(0.379), 200, 25_600, 38.24, True, {"decode": 64})
LINE = "recovery fold: KL 0.716 -> 0.379, 47 % taken away; 25,600 tokens, 38.2 s"


def test_a_log_says_which_recovery_is_at_work_and_how_long_the_rest_will_take() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    with display.working():
        display.pdtrim_step_started("recover", None)
        display.pdtrim_recovery_advanced("texts", 0, 2, 0.0)
        until(lambda: " s, texts\n" in stream.getvalue())
        display.pdtrim_recovery_advanced("kv-refit", 1, 2, 0.0)
        until(lambda: " s, kv-refit (1 of 2)\n" in stream.getvalue())
        display.pdtrim_recovery_finished(FOLD)
        display.pdtrim_recovery_advanced("fold", 2, 2, 0.25)
        until(lambda: " s, fold (2 of 2), 25 %, about 0 s left\n" in stream.getvalue())
    assert LINE in stream.getvalue().splitlines()
    display.pdtrim_step_started("evaluate", None)
    assert display._how_far() == ""


@pytest.mark.parametrize(
    ("advanced", "steps"),
    [
        ("pdtrim_recovery_advanced", (("fold", 2, 2, 0.0), ("fold", 2, 2, 0.25))),
        ("pdtrim_work_advanced", (("merges", 1, 4, 0.0), ("merges", 2, 4, 0.25))),  # over all of them
    ],
)
def test_the_time_that_is_left_goes_by_the_share_that_is_done(
    advanced: str, steps: Sequence[tuple[str, int, int, float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("pdtrim_core.cli.progress.time.monotonic", lambda: clock[0])
    display = LineDisplay(io.StringIO())
    (what, begun, count, none), (_, then, _, share) = steps
    getattr(display, advanced)(what, begun, count, none)
    assert display._how_far() == f", {what} ({begun} of {count})"
    clock[0] += 30
    getattr(display, advanced)(what, then, count, share)
    assert display._how_far() == f", {what} ({then} of {count}), 25 %, about 90 s left"


def test_a_recovery_that_was_left_out_is_told_so() -> None:
    stream = io.StringIO()
    LineDisplay(stream).pdtrim_recovery_finished(replace(FOLD, after=Metric(0.8), kept=False))
    assert stream.getvalue() == "recovery fold: KL 0.716 -> 0.800, left out; 25,600 tokens, 38.2 s\n"


def test_the_bar_is_that_of_the_recovery_at_work() -> None:
    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, force_terminal=True, color_system=None, width=100))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_recovery_advanced("fold", 1, 2, 0.5)  # outside of a step there is no bar
    display.pdtrim_step_started("recover", None)
    display.pdtrim_recovery_advanced("kv-refit", 1, 2, 0.0)
    display.pdtrim_recovery_advanced("kv-refit", 1, 2, 0.5)
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.fields["figures"]) == (0.5, 1.0, "kv-refit (1 of 2)")
    display.pdtrim_recovery_finished(FOLD)
    display.pdtrim_recovery_advanced("fold", 2, 2, 0.0)
    assert (task.completed, task.total, task.fields["figures"]) == (0.0, 1.0, "fold (2 of 2)")
    display.pdtrim_step_finished("recover", 1.25)
    display.pdtrim_run_ended()
    assert LINE in stream.getvalue()


def test_the_bar_moves_with_each_variant_that_is_compared() -> None:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=True, color_system=None, width=100)
    display = LiveDisplay(screen)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    result = TaskResult("fidelity", "unified", {}, "kl", (), {}, {}, 1.0)
    display.pdtrim_fidelity_measured(result)  # outside of a step there is no bar
    display.pdtrim_step_started("fidelity", 3)
    display.pdtrim_fidelity_measured(result)
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.fields["figures"]) == (1, 3, "unified")
    display.pdtrim_step_finished("fidelity", 1.25)
    display.pdtrim_run_ended()
    assert "fidelity: 1.2 s" in stream.getvalue()


def test_the_bar_of_a_comparison_is_full_when_its_variants_are_told() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_step_started("fidelity", 3)
    display.pdtrim_work_advanced("comparison", 0, 0, 0.5)
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.fields["figures"]) == (0.5, 1.0, "comparison")
    display.pdtrim_work_advanced("comparison", 0, 0, 1.0)
    display.pdtrim_fidelity_measured(TaskResult("fidelity", "unified", {}, "kl", (), {}, {}, 1.0))
    assert (task.completed, task.total, task.fields["figures"]) == (1.0, 1.0, "unified")
    display.pdtrim_run_ended()


def test_a_comparison_outside_of_a_run_has_a_bar_of_its_own_that_goes_also_after_an_error() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100))
    with pytest.raises(KeyError), display.comparing() as told:  # noqa: PT012 - what is drawn inside matters
        told(0.25)
        (task,) = display._progress.tasks
        assert (task.completed, task.total, task.fields["figures"]) == (0.25, 1.0, "comparison")
        raise KeyError
    assert not display._progress.tasks
    assert not display._progress.live.is_started


def test_a_log_says_how_far_a_comparison_is() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    with display.working("evaluating"), display.comparing() as told:
        told(0.5)
        until(lambda: " s, comparison, 50 %, about " in stream.getvalue())
    with QuietDisplay().comparing() as silent:
        silent(0.5)


def test_candidates_behind_other_work_have_the_bar_of_their_own() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_step_started("prune", None)
    display.pdtrim_recovery_advanced("texts", 0, 2, 1.0)
    display.pdtrim_candidate_measured(candidate(None))
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.fields["figures"]) == (1, None, "1")
    display.pdtrim_run_ended()


STEPS = ("open the model", "measure the dense model", "search", "evaluate")


def candidate(best: float | None) -> Candidate:
    return Candidate(1, Plan(), Reading(50.0, 0.5), best, remembered=False, seconds=1.0)


def test_a_log_says_which_step_it_is_at_and_how_long_the_search_will_take() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), STEPS)
    display.pdtrim_step_started("search", 40)
    display.pdtrim_candidate_measured(candidate(60.0))
    display.pdtrim_candidate_measured(candidate(None))
    until(lambda: " s, 2 of at most 40 candidates, best 60.00, about " in stream.getvalue())
    display.pdtrim_step_finished("search", 1.0)
    display.pdtrim_run_ended()
    still = next(line for line in stream.getvalue().splitlines() if "2 of at most 40" in line)
    assert still.startswith("still: step 3 of 4: search: ")
    assert still.endswith(" left")


def test_a_step_without_a_run_is_never_silent_for_long_either() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    display.pdtrim_step_started("score the blocks", None)
    until(lambda: "still: score the blocks: 0." in stream.getvalue())
    display.pdtrim_run_ended()


@pytest.mark.parametrize(("width", "words"), [(60, ("3/4 search", "elapsed ")), (120, ("step 3 of 4: search", ", left "))])
def test_the_line_of_a_step_fits_the_terminal(width: int, words: tuple[str, ...]) -> None:
    stream = io.StringIO()
    display = LiveDisplay(Console(file=stream, force_terminal=True, color_system=None, width=width, legacy_windows=False))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), STEPS)
    display.pdtrim_step_started("search", 4000)
    for _ in range(1000):
        display.pdtrim_candidate_measured(candidate(62.18))
    shown = Console(file=io.StringIO(), width=width, color_system=None)
    shown.print(display._progress.get_renderable())
    display.pdtrim_run_ended()
    (line,) = [text for text in shown.file.getvalue().splitlines() if text.strip()]  # type: ignore[attr-defined]
    assert len(line) <= width
    assert all(word in line for word in words)
    assert "1000/4000" in line


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0 s"), (45, "45 s"), (119, "119 s"), (150, "2 min"), (3600, "1 h 0 min"), (7500, "2 h 5 min")]
)
def test_times_are_told_as_people_say_them(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(7, "0:07"), (750, "12:30"), (3723, "1:02:03")])
def test_a_clock_has_minutes_and_seconds(seconds: float, shown: str) -> None:
    assert clock(seconds) == shown


def test_the_bar_of_merges_goes_on_from_one_to_the_next() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, color_system=None, width=100))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_work_advanced("merges", 1, 2, 0.5)  # outside of a step there is no bar
    display.pdtrim_step_started("merge pairs", None)
    display.pdtrim_work_advanced("merges", 1, 2, 0.0)
    display.pdtrim_work_advanced("merges", 2, 2, 0.5)
    (task,) = display._progress.tasks
    assert (task.completed, task.total, task.fields["figures"]) == (0.5, 1.0, "merges (2 of 2)")
    display.pdtrim_run_ended()


def test_the_bar_moves_while_candidates_are_measured_side_by_side() -> None:
    stream = io.StringIO()
    screen = Console(file=stream, force_terminal=True, width=60)
    display = LiveDisplay(screen)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ("search",))
    display.pdtrim_step_started("search", 10)
    task = display._progress.tasks[0]
    display.pdtrim_work_advanced("candidates", 0, 8, 0.5)
    assert (task.completed, task.total, task.fields["figures"]) == (4, 10, "4/10")
    measured = Candidate(1, Plan(), Reading(50.0, 0.5), 50.0, remembered=False, seconds=1.0)
    for _ in range(8):
        display.pdtrim_candidate_measured(measured)
    assert (task.completed, task.fields["figures"]) == (8, "8/10, best 50.00")
    display.pdtrim_work_advanced("candidates", 0, 8, 1.0)
    assert task.completed == 10
    display.pdtrim_run_ended()


def test_without_a_total_it_is_told_how_far_the_next_candidates_are() -> None:
    display = LiveDisplay(Console(file=io.StringIO(), force_terminal=True, width=60))
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ("search",))
    display.pdtrim_step_started("search", None)
    task = display._progress.tasks[0]
    display.pdtrim_work_advanced("candidates", 0, 8, 0.5)
    assert (task.total, task.fields["figures"]) == (None, "0, 50 % of 8 more")
    display.pdtrim_candidate_measured(Candidate(1, Plan(), Reading(50.0, 0.5), 50.0, remembered=False, seconds=1.0))
    assert (task.completed, task.total) == (1, None)
    display.pdtrim_run_ended()


def test_a_log_says_how_far_candidates_side_by_side_are() -> None:
    stream = io.StringIO()
    display = LineDisplay(stream, seconds=0.05)
    display.pdtrim_run_started({"model": {"path": "m"}}, Path("out"), ())
    display.pdtrim_step_started("search", 10)
    display.pdtrim_work_advanced("candidates", 0, 8, 0.5)
    until(lambda: ", the next 8, 50 %, about " in stream.getvalue())
    display.pdtrim_run_ended()
