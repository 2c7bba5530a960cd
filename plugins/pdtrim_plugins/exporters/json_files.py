"""JSON as exports have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def write_json(path: Path, data: Any) -> None:
    """Write data as JSON for people and programs."""
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
