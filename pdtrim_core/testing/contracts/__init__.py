"""Contract tests: what every component of a kind must hold to, as classes that a plugin author subclasses.

A plugin's test is three lines::

    from pdtrim_core.testing import ScorerContract

    class TestNormRatio(ScorerContract):
        component = NormRatio

Set `options` where the component has required ones. A test may be departed from, with a reason: say
`departs = {"test_...": "reason"}`; it is then skipped with that reason, unless the class has a test of that name itself.

Nothing here needs a download: models are tiny, and searchers and splitters are measured on a table.
"""

from __future__ import annotations

from pdtrim_core.testing.contracts.calibrations import CalibrationContract
from pdtrim_core.testing.contracts.distillers import DistillerContract
from pdtrim_core.testing.contracts.kv_selectors import KvSelectorContract
from pdtrim_core.testing.contracts.model_sources import ModelSourceContract
from pdtrim_core.testing.contracts.objectives import FixedStaged, ObjectiveContract
from pdtrim_core.testing.contracts.pruners import PrunerContract
from pdtrim_core.testing.contracts.quantizers import QuantizerContract
from pdtrim_core.testing.contracts.recoveries import RecoveryContract
from pdtrim_core.testing.contracts.scorers import ScorerContract
from pdtrim_core.testing.contracts.searchers import SearcherContract
from pdtrim_core.testing.contracts.small_run import TinyModel, small_run, tiny_host
from pdtrim_core.testing.contracts.splitters import SplitterContract
from pdtrim_core.testing.contracts.tables import Table, rugged, search_on_table, split_on_table, table_space
from pdtrim_core.testing.contracts.writers import ExporterContract, ReportContract

__all__ = [
    "CalibrationContract",
    "DistillerContract",
    "ExporterContract",
    "FixedStaged",
    "KvSelectorContract",
    "ModelSourceContract",
    "ObjectiveContract",
    "PrunerContract",
    "QuantizerContract",
    "RecoveryContract",
    "ReportContract",
    "ScorerContract",
    "SearcherContract",
    "SplitterContract",
    "Table",
    "TinyModel",
    "rugged",
    "search_on_table",
    "small_run",
    "split_on_table",
    "table_space",
    "tiny_host",
]
