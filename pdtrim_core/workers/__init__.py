"""Workers of a run in other processes and on other machines, through Ray: the one room that knows it.

Ray is an extra, and takes seconds to load, so nothing here imports it before workers are wanted.
"""

from __future__ import annotations

import importlib.util

from pdtrim_core.errors import PdtrimError


def check_installed() -> None:
    """Raise `PdtrimError` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise PdtrimError("workers need Ray, which is not installed: pip install 'pdtrim-core[ray]'")
