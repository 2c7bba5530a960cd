"""Hook calls on stderr, for plugin authors: `PDTRIM_TRACE=1`."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pdtrim_core.errors import reason_of
from pdtrim_core.wording import visible

SWITCH = "PDTRIM_TRACE"
WIDTH = 200


@dataclass
class HookCall:
    """What a hook returned."""

    answer: Any = None


@contextmanager
def traced(hook: str, who: str, **facts: object) -> Iterator[HookCall]:
    """Print a line for one call of a hook, with its arguments, and what it returned or raised; only with `PDTRIM_TRACE=1`."""
    found = HookCall()
    try:
        yield found
    except BaseException as error:
        _say(hook, who, facts, f" raised {reason_of(error, kind=True)}")
        raise
    _say(hook, who, facts, "" if found.answer is None else f" -> {_short(found.answer)}")


def _say(hook: str, who: str, facts: dict[str, object], result: str) -> None:
    if os.environ.get(SWITCH, "0") not in ("", "0"):
        arguments = ", ".join(f"{name}={_short(value)}" for name, value in facts.items())
        print(visible(f"trace: {who} {hook}({arguments}){result}"), file=sys.stderr)  # noqa: T201 - a trace is for reading


def _short(value: object) -> str:
    if isinstance(value, type):
        return value.__name__
    if isinstance(value, list):
        return f"[{', '.join(_short(part) for part in value)}]"
    try:
        text = repr(value).encode("ascii", "backslashreplace").decode()
    except Exception:  # noqa: BLE001 - foreign objects may fail to show themselves, and a trace must not matter
        return f"<{type(value).__name__}>"
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
