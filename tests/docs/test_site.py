"""The site: every page has its place in the navigation, and what pages include is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pdtrim_core.api.kinds import KINDS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
CONFIG = (ROOT / "mkdocs.yml").read_text()
SNIPPET = re.compile(r'^--8<-- "([^"]+)"$', re.MULTILINE)


def test_every_page_is_in_the_navigation_once() -> None:
    named = re.findall(r"^ +- (?:[^:\n]+: )?([\w/-]+\.md)$", CONFIG.partition("\nnav:")[2], re.MULTILINE)
    assert len(named) == len(set(named))
    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} <= set(named)


@pytest.mark.parametrize("page", sorted(DOCS.rglob("*.md")), ids=lambda page: page.name)
def test_what_a_page_includes_is_there(page: Path) -> None:
    text = page.read_text()
    assert [name for name in SNIPPET.findall(text) if not (ROOT / name).is_file()] == []
    assert text.count("--8<--") == len(SNIPPET.findall(text))


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"scorer"}))
def test_the_page_of_a_kind_shows_its_template(kind: str) -> None:
    pages = [page for page in DOCS.rglob("write-*.md") if f'"pdtrim_core/scaffold/templates/{kind}.py"' in page.read_text()]
    assert len(pages) == 1


def test_what_the_site_is_built_with_is_pinned() -> None:
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert {"mkdocs", "mkdocs-material", "pymdown-extensions", "Markdown"} <= pinned
