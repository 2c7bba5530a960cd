"""Is a module that fails when it is looked at."""

from __future__ import annotations

from typing import NoReturn


def __dir__() -> list[str]:
    return ["pdtrim_scorers"]


def __getattr__(name: str) -> NoReturn:
    raise RuntimeError(f"hands off {name}")
