"""What the tests of the contracts share: running all of a contract's tests on a component."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


@pytest.fixture
def failing(tmp_path: Path) -> Callable[..., set[str]]:
    """Give a function that returns the tests of a contract that a component fails, of some or of all of them."""

    def run(contract: Any, component: Any, *tests: str, **settings: Any) -> set[str]:
        made = type("TestOfTests", (contract,), {"component": component, **settings})()
        names = tests or [name for name in dir(contract) if name.startswith("test_")]
        return {name for name in names if _fails(getattr(made, name), tmp_path / name)}

    return run


def _fails(test: Callable[..., None], folder: Path) -> bool:
    for number, arguments in enumerate(_parameters(test)):
        own = folder / str(number)
        own.mkdir(parents=True)
        try:
            test(**arguments, **({"tmp_path": own} if "tmp_path" in inspect.signature(test).parameters else {}))
        except (Exception, pytest.fail.Exception):  # noqa: BLE001 - a broken component may raise anything
            return True
    return False


def _parameters(test: Callable[..., None]) -> list[dict[str, Any]]:
    """Return the arguments of each case of a test with one parameter; none for a test without."""
    marks = [mark for mark in getattr(test, "pytestmark", []) if mark.name == "parametrize"]
    return [{mark.args[0]: value} for mark in marks for value in mark.args[1]] or [{}]
