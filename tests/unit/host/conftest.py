"""What tests of plugins share: loading with some of the fake distributions installed."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pdtrim_core import PluginHost, load_plugins
from tests.unit.host.third_parties import BROKEN, Load


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """Load the plugins with some of the fake distributions installed."""
    before = set(sys.modules)

    def load_with(*names: str, files: tuple[Path, ...] = ()) -> PluginHost:
        for name in names:
            assert (BROKEN / name).is_dir()
            monkeypatch.syspath_prepend(BROKEN / name)
        return load_plugins(files)

    yield load_with
    for name in {name for name in sys.modules if name.startswith(("broken_", "twin_", "pdtrim_file_"))} - before:
        del sys.modules[name]
