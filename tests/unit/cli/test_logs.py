"""What a machine is told of work that goes on: its beginning, its end, and a line a second between them."""

from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING

from pdtrim_core.cli.logs import JsonDisplay

if TYPE_CHECKING:
    import pytest


def test_work_that_tells_each_token_is_a_line_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, stream = [100.0], io.StringIO()
    monkeypatch.setattr("pdtrim_core.cli.logs.time.monotonic", lambda: clock[0])
    display = JsonDisplay(stream)
    for what in ("answers", "texts"):
        for done in range(101):
            display.pdtrim_work_advanced(what, 0, 0, done / 100)
            clock[0] += 0.03
        display.pdtrim_work_advanced(what, 0, 0, 1.0)
    with display.comparing() as told_share:
        told_share(0.5)
    display.pdtrim_step_started("recover", None)
    display.pdtrim_recovery_advanced("texts", 0, 0, 0.0)
    told = [(line["what"], line["share"]) for line in map(json.loads, stream.getvalue().splitlines()) if "what" in line]
    shares = (0.0, 0.34, 0.68, 1.0)
    alone = [("comparison", 0.5), ("texts", 0.0)]
    assert told == [*(("answers", share) for share in shares), *(("texts", share) for share in shares), *alone]
