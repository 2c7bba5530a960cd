"""The formulas of the pages are set as MathML when the site is built, and nothing else is touched."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))


def formulas() -> object:
    pytest.importorskip("latex2mathml")
    sys.path.insert(0, str(ROOT / "docs"))
    try:
        import formulas as found
    finally:
        sys.path.pop(0)
    return found


def set_of(text: str) -> str:
    return str(formulas().on_page_markdown(text))  # type: ignore[attr-defined]


def test_blocks_and_formulas_in_a_line_are_set_and_code_stays() -> None:
    code = "```sh\necho '$`x`$'\n```"
    made = set_of(f"A $`h_i`$ here.\n\n```math\na \\\\frac{{1}}{{2}}\n```\n\n{code}\n\n```math\nb\n```\n")
    assert made.count("<math") == 3
    assert made.count('class="formula"') == 2
    assert code in made
    assert "```math" not in made


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_formula_of_a_page_is_left_as_source(page: Path) -> None:
    text = page.read_text()
    if "$`" not in text and "```math" not in text:
        return
    made = set_of(text)
    assert "$`" not in re.sub(r"^```.*?^```$", "", made, flags=re.MULTILINE | re.DOTALL)
    # What its converter does not know it passes on with its backslash.
    assert not re.search(r"<m[ion]>\\\\", made)
