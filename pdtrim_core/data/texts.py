"""Text for those who have none: the prose of the Python reference."""

from __future__ import annotations

import re


def python_reference() -> list[str]:
    """Return the prose of the Python reference that CPython ships, a paragraph's line each: text for those who have none."""
    from pydoc_data.topics import topics  # noqa: PLC0415 - 700 kB of text, wanted by few

    return [line.strip() for _, text in sorted(topics.items()) for line in text.splitlines() if _is_prose(line)]


def _is_prose(line: str) -> bool:
    """Tell prose from code, grammar and headings in the topics, which are set in reStructuredText's text form."""
    return bool(re.match(r"[A-Z(a-z\"]", line)) and len(line.split()) > 5 and "::=" not in line
