"""All that commands print goes through one place, where texts of others cannot steer a terminal."""

from __future__ import annotations

import io
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.table import Table
from rich.text import Text

import pdtrim_core.cli
from pdtrim_core import Merge
from pdtrim_core.cli.progress import LineDisplay, progress_display
from pdtrim_core.cli.terminal import console, fitted, print_table, say, say_data

EVIL = "\x1b[2Jx\x9b31m\u202ey\x07"
SHOWN = "\\x1b[2Jx\\x9b31m\\u202ey\\x07"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_what_is_said_is_visible(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say(EVIL, end="")
    say_data(f'"{EVIL}"')
    assert capsys.readouterr().out == f'{SHOWN}\n{SHOWN}"\\u001b[2Jx\\u009b31m\\u202ey\\u0007"\n'


def drawn(thing: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    console(stream, width=200).print(thing)
    return stream.getvalue()


def test_tables_keep_their_own_colours_and_their_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    table = Table(box=None, pad_edge=False)
    table.add_column(EVIL, no_wrap=True)
    table.add_column("score")
    table.add_row(EVIL, Text("1.0", "bold"))
    table.add_row("short", "[red]:smile:")
    heading, first, second = drawn(table, monkeypatch).splitlines()
    assert SHOWN in heading
    assert first.startswith(f"{SHOWN} ")
    assert "\x1b[1m1.0" in first
    assert second.startswith("short".ljust(len(SHOWN)) + "  [red]:smile:")
    assert EVIL not in heading + first


def test_texts_that_rich_made_before_are_visible_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "\\x1b[2J" in drawn(Text("\x1b[2J"), monkeypatch)
    assert drawn("note: [/bold] of \x1b]0;t", monkeypatch) == "note: [/bold] of \\x1b]0;t\n"


def told(display: Any) -> None:
    display.pdtrim_run_started(recipe={"model": {"path": f"model {EVIL}"}}, out=Path(f"out {EVIL}"), steps=())
    display.pdtrim_step_started(step=f"step {EVIL}", about=3)
    display.pdtrim_candidate_measured(candidate=SimpleNamespace(best=1.0))
    display.pdtrim_note_made(note=f"note {EVIL}")
    display.pdtrim_merge_trained(merge=Merge(1, 2), trained=1.0, untrained=2.0)
    display.pdtrim_step_finished(step=f"step {EVIL}", seconds=1.0)
    if not isinstance(display, LineDisplay):
        display.pdtrim_run_ended()


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_the_progress_of_a_run_is_visible(stream: type[io.StringIO], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    out = stream()
    told(progress_display(out))
    text = out.getvalue()
    for what in ("model", "out", "note", "step"):
        assert f"{what} \\x1b[2Jx" in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text.replace("\n", ""))
    assert not re.search("\x1b\\[2J|\x9b|\u202e|\x07", text)


def test_nothing_else_in_the_commands_writes_to_the_terminal() -> None:
    ways = re.compile(
        r"(?<![\w.])print\(|rich\.console import Console|Console\(|typer\.(echo|secho)|std(out|err)\.write|print_exc"
    )
    found = {
        f"{file.name}: {line.strip()}"
        for file in Path(pdtrim_core.cli.__file__).parent.glob("*.py")
        for line in file.read_text().splitlines()
        if ways.search(line) and file.name != "terminal.py" and not line.startswith("    from rich.console import Console")
    }
    assert found == set()


def table() -> Table:
    found = Table(box=None, pad_edge=False)
    found.add_column("method", no_wrap=True)
    for title in ("prefill removed", "decode MB a token"):
        found.add_column(title, no_wrap=True, justify="right")
    found.add_row("a pruner with a long name", "48.3 %", "12.0 +- 2.1")
    return found


def test_a_table_that_is_too_wide_is_broken_between_words_in_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    for columns, lines in ((61, 2), (60, 3), (49, 3), (40, 7)):
        stream: io.StringIO = Terminal()
        monkeypatch.setattr("sys.stdout", stream)
        monkeypatch.setenv("COLUMNS", str(columns))
        print_table(table())
        shown = re.sub(r"\x1b\[\d*m", "", stream.getvalue()).splitlines()
        assert len(shown) == lines
        assert max(map(len, shown)) <= columns
        words = " ".join(shown).split()
        assert {"removed", "token", "pruner", "48.3", "12.0"} <= set(words)
        assert any("12.0 +- 2.1" in line for line in shown)
    stream = io.StringIO()
    monkeypatch.setattr("sys.stdout", stream)
    print_table(table())
    assert len(stream.getvalue().splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("short", "short"),
        ("note: words that go on and on", "note: words that go\n    on and on"),
        ("  weights       12.34 M", "  weights\n      12.34 M"),
        ("averyveryverylongwordalone", "averyveryverylongwordalone"),
        ("one\n\ntwo", "one\n\ntwo"),
        ("next: pdtrim-core run a/b.toml --out c", "next: pdtrim-core run a/b.toml --out c"),
    ],
)
def test_lines_are_broken_between_words(text: str, shown: str) -> None:
    assert fitted(text, 20) == shown


def test_a_question_that_is_broken_still_ends_with_a_space() -> None:
    assert fitted("How much of it goes? [0.13]: ", 20) == "How much of it goes?\n    [0.13]: "


def test_what_goes_into_a_file_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    pipe, terminal = io.StringIO(), Terminal()
    for stream in (pipe, terminal):
        say("note: words that go on and on", file=stream)
    assert pipe.getvalue() == "note: words that go on and on\n"
    assert terminal.getvalue() == "note: words that go\n    on and on\n"
