"""Text made fit to be shown: in one line, not too long, and with nothing in it that steers a terminal or turns text around."""

from __future__ import annotations

import re

LONGEST_VALUE = 200
"""Characters of a user's own value in a message, at most."""
LONGEST_REASON = 500
"""Characters of another library's message, at most."""
LONGEST_LINE = 2000
"""Characters of a line of a message, at most."""
COLOURS = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)|[@-Z\\-_])")
"""What tells a terminal to change its colour, to move its cursor or to set its title."""
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


def one_line(text: str) -> str:
    """Return a text as one line, without what only a terminal understands."""
    plain = COLOURS.sub("", text)
    return " ".join("".join(letter if letter.isprintable() else " " for letter in plain).split())


def shortened(text: str, most: int = LONGEST_VALUE) -> str:
    """Return a text in one line of some `most` characters; a longer one loses its middle, for the reason may be at either end."""
    if len(text) > most:
        text = f"{text[: (most - 3) * 2 // 3]}...{text[-((most - 3) // 3) :]}"
    return visible(text).replace("\n", "\\n").replace("\t", "\\t")


def shown(value: object) -> str:
    """Return a user's value as a message shows it: its `repr`, shortened."""
    return shortened(repr(value))


def counted(number: int, noun: str) -> str:
    """Return a number with its noun: "1 candidate", "1,200 candidates"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _python_escape(found: re.Match[str]) -> str:
    code = ord(found[0])
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"
