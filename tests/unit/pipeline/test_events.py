"""What a run tells listeners, and what the outcome keeps of it."""

from __future__ import annotations

import time
from types import SimpleNamespace

import pytest

from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.host.host import Origin, PluginHost
from pdtrim_core.pipeline.events import RunEvents


@pytest.fixture
def heard() -> list[str]:
    return []


@pytest.fixture
def log(heard: list[str]) -> RunEvents:
    """The log of a run with one listener, which writes down what it hears."""
    host = PluginHost()
    listener = SimpleNamespace(
        pdtrim_step_started=hookimpl(lambda step, about: heard.append(f"{step} begins, {about}")),
        pdtrim_step_finished=hookimpl(lambda step, seconds: heard.append(f"{step} ends")),
        pdtrim_note_made=hookimpl(lambda note: heard.append(f"note: {note}")),
        pdtrim_run_ended=hookimpl(lambda: heard.append("end")),
    )
    host.register(listener, Origin("listener", "tests"))
    assert host.failures == []
    return RunEvents(host)


def test_listeners_hear_what_happens_in_its_order(log: RunEvents, heard: list[str]) -> None:
    with log:
        with log.step("score"):
            log.note("a choice")
        with log.step("search", 12):
            pass
    assert heard == ["score begins, None", "note: a choice", "score ends", "search begins, 12", "search ends", "end"]


def test_the_outcome_keeps_notes_and_no_previews(log: RunEvents, heard: list[str]) -> None:
    log.note("kept")
    log.preview("said")
    assert log.notes == ["kept"]
    assert heard == ["note: kept", "note: said"]


def test_a_step_that_is_run_again_adds_to_its_seconds(log: RunEvents, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 11.5, 20.0, 20.25, 30.0, 33.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    for name in ("search", "split", "search"):
        with log.step(name):
            pass
    assert log.seconds == {"search": 4.5, "split": 0.25}


def test_a_run_that_fails_ends_too_and_its_step_does_not_finish(log: RunEvents, heard: list[str]) -> None:
    with pytest.raises(ZeroDivisionError), log, log.step("search"):
        raise ZeroDivisionError
    assert heard == ["search begins, None", "end"]
    assert log.seconds == {}


def test_two_logs_share_nothing(log: RunEvents) -> None:
    other = RunEvents(log.host)
    log.note("mine")
    log.seconds["search"] = 1.0
    assert (other.notes, other.seconds, other.search) == ([], {}, [])
