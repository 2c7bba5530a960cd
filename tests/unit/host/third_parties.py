"""Plugins of other people, for tests: files, objects, and the fake distributions of tests/broken_dist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pdtrim_core import PluginHost
from pdtrim_core.host.host import Origin

BROKEN = Path(__file__).parents[2] / "broken_dist"
Load = Callable[..., PluginHost]

GOOD_FILE = '''
from pdtrim_core.api import Scorer, Scores, hookimpl

class Flat(Scorer):
    """All blocks alike."""
    name = "flat"
    def score(self, context):
        return Scores((0.0,) * context.block_count)

@hookimpl
def pdtrim_scorers():
    yield Flat
'''


def host_of(**plugins: Any) -> PluginHost:
    """Return a host with plugins that are given as {hook: marked function}, by their names, in the order of loading."""
    host = PluginHost()
    for name, functions in plugins.items():
        host.register(SimpleNamespace(**functions), Origin("parts", name, "1.0"))
    return host


def told(host: PluginHost) -> list[tuple[str, str]]:
    return [(str(failure.origin), failure.problem) for failure in host.failures]
