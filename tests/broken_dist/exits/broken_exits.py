"""Ends the program when it is imported, as a script might."""

from __future__ import annotations

import sys

sys.exit(3)
