"""PDTRIM_TRACE: a line on stderr for each call of an implementation of a hook."""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

from pdtrim_core import hookimpl, load_plugins
from pdtrim_core.api import Scorer
from pdtrim_core.host.tracing import WIDTH, traced
from tests.unit.host.third_parties import Load, host_of


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PDTRIM_TRACE", "1")


def lines(capsys: pytest.CaptureFixture[str]) -> list[str]:
    shown = capsys.readouterr()
    assert shown.out == ""
    return shown.err.splitlines()


def test_calls_of_hooks_can_be_seen(load: Load, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from pdtrim_core.testing import tiny_transformers

    monkeypatch.setenv("PDTRIM_TRACE", "1")
    monkeypatch.setenv("PDTRIM_PLUGINS", "architectures,twin-one,broken-listener,broken-questions,broken-raising")
    host = load("twin_one", "listener", "raising_questions", "raising_hook")
    place = host.find_blocks(tiny_transformers("llama"), "tiny")
    with pytest.warns(UserWarning, match="is muted"):
        host.tell("pdtrim_note_made", note="one")
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "trace: twin-one pdtrim_scorers() -> [Twin]",
        "trace: broken-raising pdtrim_scorers() raised ZeroDivisionError: division by zero",
        "trace: broken-raising pdtrim_searchers() -> [Patient]",
        "trace: broken-questions pdtrim_model_sources() -> [Picky]",
        f"trace: pdtrim-core:architectures pdtrim_find_blocks() -> {repr(place)[:197]}...",
        "trace: broken-listener:parts pdtrim_note_made(note='one') raised ValueError: too loud",
    ]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_nothing_is_traced_unasked(
    value: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if value is None:
        monkeypatch.delenv("PDTRIM_TRACE", raising=False)
    else:
        monkeypatch.setenv("PDTRIM_TRACE", value)
    load_plugins().tell("pdtrim_note_made", note="one")
    assert capsys.readouterr() == ("", "")


@pytest.mark.usefixtures("on")
def test_a_call_is_shown_with_what_it_was_told_and_what_it_answered(capsys: pytest.CaptureFixture[str]) -> None:
    with traced("pdtrim_scorers", "mine", out=Path("runs"), kind=Scorer) as found:
        found.answer = [Scorer, 1]
    assert lines(capsys)[0].startswith("trace: mine pdtrim_scorers(out=")
    with traced("pdtrim_run_ended", "mine"):
        pass
    assert lines(capsys) == ["trace: mine pdtrim_run_ended()"]


@pytest.mark.usefixtures("on")
def test_what_is_long_or_cannot_show_itself_is_cut_or_named(capsys: pytest.CaptureFixture[str]) -> None:
    class Shy:
        def __repr__(self) -> str:
            raise RuntimeError("do not look")

    with traced("pdtrim_note_made", "mine", note="x" * 1000, shy=Shy(), name="caf\u00e9"):
        pass
    (line,) = lines(capsys)
    assert line == f"trace: mine pdtrim_note_made(note='{'x' * (WIDTH - 4)}..., shy=<Shy>, name='caf\\xe9')"


@pytest.mark.usefixtures("on")
def test_an_interrupt_is_shown_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(KeyboardInterrupt), traced("pdtrim_run_ended", "mine"):
        raise KeyboardInterrupt
    assert lines(capsys) == ["trace: mine pdtrim_run_ended() raised KeyboardInterrupt"]


@pytest.mark.usefixtures("on")
def test_a_listener_is_shown_all_that_it_was_told_also_what_it_does_not_take(capsys: pytest.CaptureFixture[str]) -> None:
    @hookimpl
    def listener(step: str) -> None:
        assert step == "search"

    host_of(ears={"pdtrim_step_started": listener}).tell("pdtrim_step_started", step="search", about=None)
    assert lines(capsys) == ["trace: ears:parts pdtrim_step_started(step='search', about=None)"]


@pytest.mark.usefixtures("on")
def test_wrappers_are_shown_when_they_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    @hookimpl(wrapper=True)
    def changes(model: object) -> Generator[None, str, str]:
        return f"{yield}!"

    @hookimpl(wrapper=True)
    def fails() -> Generator[None, object, None]:
        yield
        raise ValueError("too late")

    host = host_of(
        finds={"pdtrim_find_blocks": hookimpl(lambda model: "place")},
        around={"pdtrim_find_blocks": changes, "pdtrim_run_ended": fails},
    )
    host.find_blocks(object(), "tiny")
    with pytest.warns(UserWarning, match="is muted"):
        host.tell("pdtrim_run_ended")
    assert lines(capsys) == [
        "trace: finds:parts pdtrim_find_blocks() -> 'place'",
        "trace: around:parts pdtrim_find_blocks() -> 'place!'",
        "trace: around:parts pdtrim_run_ended() raised ValueError: too late",
    ]
