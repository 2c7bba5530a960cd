"""Recoveries: ways to give the layers of a pruned pair other weights, so that it answers more like the dense model."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Recovery, hookimpl
from pdtrim_plugins.recoveries.distill import Distill
from pdtrim_plugins.recoveries.exact_first_token import ExactFirstToken
from pdtrim_plugins.recoveries.fold import Fold
from pdtrim_plugins.recoveries.kv_refit import KvRefit

__all__ = ["Distill", "ExactFirstToken", "Fold", "KvRefit", "pdtrim_recoveries"]


@hookimpl
def pdtrim_recoveries() -> Iterable[type[Recovery]]:
    """Yield the recoveries."""
    yield from (ExactFirstToken, KvRefit, Fold, Distill)
