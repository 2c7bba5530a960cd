# ruff: noqa: INP001 - a script beside the pages
"""Formulas of the pages as MathML: what stands in a fence `math`, or between $` and `$, as GitHub reads them, too."""

from __future__ import annotations

import re
from typing import Any

from latex2mathml.converter import convert

FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"\$`([^`\n]+)`\$")


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the text of a page with its formulas set; MkDocs calls it for each page. Other fences stay as they are."""
    parts, place = [], 0
    for fence in FENCE.finditer(markdown):
        parts += [_inline(markdown[place : fence.start()]), _block(fence[2]) if fence[1] == "math" else fence.group()]
        place = fence.end()
    return "".join([*parts, _inline(markdown[place:])])


def _block(formula: str) -> str:
    # In one line, which Markdown leaves alone.
    return f'<div class="formula">{convert(" ".join(formula.split()), display="block")}</div>'


def _inline(text: str) -> str:
    return INLINE.sub(lambda found: convert(found[1]), text)
