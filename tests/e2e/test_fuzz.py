"""Broken input for everything that reads, as many as fit in a few seconds: always the same ones, in the same order."""

from __future__ import annotations

import pytest

from pdtrim_core.harness.tasks import hub_tasks
from tests import fuzz

pytestmark = pytest.mark.e2e
SECONDS = 20


def test_no_broken_input_gives_a_traceback_or_a_hang() -> None:
    hub_tasks()  # Read once, in seconds: no input is to blame for it.
    found = fuzz.fuzz(range(10_000), SECONDS)
    assert found.inputs > 10
    assert not found.tracebacks + found.hangs, "\n".join(found.tracebacks + found.hangs)


def test_the_fuzzer_sees_a_traceback_a_loud_message_and_a_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(rng: object) -> None:
        raise ZeroDivisionError

    def shouts(rng: object) -> None:
        fuzz.check_message("x" * fuzz.LOUDEST)

    def hangs(rng: object) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "TOO_LONG", 1)
    for entry in (breaks, shouts, hangs):
        monkeypatch.setattr(fuzz, "ENTRIES", {entry: 1})
        found = fuzz.fuzz(range(1))
        assert (len(found.tracebacks), len(found.hangs)) == ((0, 1) if entry is hangs else (1, 0))
        assert not found.good
