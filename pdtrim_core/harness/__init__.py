"""lm-evaluation-harness on a run: its model class, its tasks from files, and results in the run folder.

Nothing here imports the harness before it is needed: it is an extra, and it takes seconds to load.
"""

from __future__ import annotations

import importlib.util

from pdtrim_core.errors import PdtrimError


def check_installed() -> None:
    """Raise `PdtrimError` where lm-evaluation-harness is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise PdtrimError("evaluating needs lm-evaluation-harness, which is not installed: pip install 'pdtrim-core[eval]'")
