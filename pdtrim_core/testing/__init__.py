"""The kit for plugin authors: tiny models and contract tests.

The contract tests need pytest, so they are imported on first use.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from pdtrim_core.testing.contexts import prune_context, recovery_context, selection_context
from pdtrim_core.testing.models import FAMILIES, ByteTokenizer, tiny_config, tiny_llama, tiny_model, tiny_transformers

if TYPE_CHECKING:
    from pdtrim_core.testing.contracts import (
        CalibrationContract,
        DistillerContract,
        ExporterContract,
        KvSelectorContract,
        ModelSourceContract,
        ObjectiveContract,
        PrunerContract,
        QuantizerContract,
        RecoveryContract,
        ReportContract,
        ScorerContract,
        SearcherContract,
        SplitterContract,
        TinyModel,
    )

__all__ = [
    "FAMILIES",
    "ByteTokenizer",
    "CalibrationContract",
    "DistillerContract",
    "ExporterContract",
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
    "TinyModel",
    "prune_context",
    "recovery_context",
    "selection_context",
    "tiny_config",
    "tiny_llama",
    "tiny_model",
    "tiny_transformers",
]

_CONTRACTS = "pdtrim_core.testing.contracts"


def __getattr__(name: str) -> Any:
    """Import a contract on first use, with asserts that say what they compared."""
    if name not in __all__:
        raise AttributeError(f"module 'pdtrim_core.testing' has no attribute '{name}'")
    import importlib  # noqa: PLC0415 - only the contracts need it

    import pytest  # noqa: PLC0415 - the tiny models work without it

    if _CONTRACTS not in sys.modules:
        pytest.register_assert_rewrite(_CONTRACTS)
    return getattr(importlib.import_module(_CONTRACTS), name)
