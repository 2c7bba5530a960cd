"""Hypothesis for everything here: the same examples each time, and no clock, since several things share the machine."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("core", deadline=None, derandomize=True, max_examples=60)
settings.load_profile("core")
