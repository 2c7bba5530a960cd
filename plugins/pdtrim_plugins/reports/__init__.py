"""Reports: what a run did, for a person."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.api import Report, hookimpl
from pdtrim_plugins.reports.html import Html
from pdtrim_plugins.reports.table import Table


@hookimpl
def pdtrim_reports() -> Iterable[type[Report]]:
    """Yield the reports."""
    yield from (Table, Html)
