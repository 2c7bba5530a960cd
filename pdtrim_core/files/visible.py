"""What comes out of files and plugins, made fit to be shown: no character of it steers a terminal or turns text around."""

from __future__ import annotations

import re

STEERS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline: the escape character, carriage return, ...
    "\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # line separators, and what sets the direction of text
    "\ud800-\udfff]"  # bytes of a file name that are no text, which cannot be printed
)


def visible(text: str) -> str:
    r"""Return text with such characters written out, as `\x1b`."""
    return STEERS.sub(_python_escape, text)


def visible_in_data(text: str) -> str:
    r"""Return JSON or TOML text with such characters written out as both read them back, as `\u009b`."""
    return STEERS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _python_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
