"""Text that would steer a terminal is written out, and nothing else is changed."""

from __future__ import annotations

import json
import sys
import unicodedata

import pytest
import tomli

from pdtrim_core.wording import visible, visible_in_data

STEERING = [*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0xDC80]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "\\x1b[31mred\\x1b[0m"),
        ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
        ("a\rb\x08\x7f", "a\\x0db\\x08\\x7f"),
        ("\x9b31m", "\\x9b31m"),
        ("a\u202eb\u2066c", "a\\u202eb\\u2066c"),
        ("a\udc80", "a\\udc80"),
        ("tab\tand\nline \u00e4\u4e2d\U0001f600 \\x1b", "tab\tand\nline \u00e4\u4e2d\U0001f600 \\x1b"),
    ],
)
def test_what_steers_is_written_out(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_no_character_that_steers_is_left() -> None:
    everything = visible("".join(map(chr, range(sys.maxunicode + 1))))
    left = {letter for letter in everything if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp")} - {"\t", "\n"}
    assert left == set()
    turns = {
        letter
        for letter in everything
        if unicodedata.bidirectional(letter) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    }
    assert turns == set()
    assert all(visible(chr(code)) != chr(code) for code in STEERING)


@pytest.mark.parametrize("code", [code for code in STEERING if code != 0xDC80])
def test_data_read_back_to_the_same(code: int) -> None:
    text = f"a{chr(code)}b"
    shown = visible_in_data(json.dumps({"x": text}, ensure_ascii=False))
    assert visible(shown) == shown
    assert json.loads(shown) == {"x": text}
    if code > 159:
        assert tomli.loads(visible_in_data(f'x = "{text}"')) == {"x": text}
