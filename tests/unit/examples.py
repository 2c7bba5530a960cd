"""Hypothesis as the tests here use it: the same examples each time, and no clock, since several things share the machine.

A profile would hold for the whole session, and so for other folders' tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis
from hypothesis import strategies as st

STEADY = hypothesis.settings(deadline=None, derandomize=True, max_examples=60)


def given(*drawn: st.SearchStrategy[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return `hypothesis.given` for these strategies, with the settings of this folder."""
    return lambda test: STEADY(hypothesis.given(*drawn)(test))
