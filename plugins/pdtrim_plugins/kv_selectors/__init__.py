"""Selectors of K/V: which tokens of a prompt the blocks of decode read."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import KvSelector, hookimpl
from pdtrim_plugins.kv_selectors.paper import Paper
from pdtrim_plugins.kv_selectors.plain import All, FirstOnlySelector


@hookimpl
def pdtrim_kv_selectors() -> Iterable[type[KvSelector]]:
    """Yield the selectors of K/V."""
    yield Paper
    yield FirstOnlySelector
    yield All
