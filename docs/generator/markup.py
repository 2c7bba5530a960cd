"""Pieces of Markdown that several pages need."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence
from typing import Any

from pdtrim_core.api.component import Component


def anchor(heading: str) -> str:
    """Return the anchor that readers of Markdown make of a component's heading: signs but the hyphen go."""
    return re.sub(r"[^a-z0-9-]", "", heading.lower())


def doc(thing: Any) -> str:
    """Return a docstring without its indentation."""
    return inspect.getdoc(thing) or ""


def summary(component: type[Component]) -> str:
    """Return the first line of a component's docstring."""
    return doc(component).split("\n", maxsplit=1)[0]


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines)
