"""The page in a real browser: nothing overlaps, is cut off or hard to read, at three widths and in both themes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pdtrim_core import Outcome, read_record
from pdtrim_plugins.reports.html import Html
from tests.browser import runs
from tests.browser.chromium import Chromium, installed

pytestmark = pytest.mark.skipif(installed() is None, reason="no chromium here: apt-get install chromium")

MEASURE = Path(__file__).with_name("measure.js").read_text()
OPEN_ALL = "document.querySelectorAll('details').forEach((part) => { part.open = true; })"
FINISHED: dict[str, tuple[Callable[[], Outcome], bool]] = {
    "big": (runs.big, True),
    "merged": (runs.merged, True),
    "recovered": (runs.recovered, True),
    "narrowed": (runs.narrowed, False),
    "joint": (runs.joint, False),
    "replaced": (runs.replaced, False),
}
PAGES = (*FINISHED, "unfinished", "comparison")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages of runs of every sort, and one with all of them."""
    folder = tmp_path_factory.mktemp("pages")
    found = {name: runs.write_run(folder / name, make(), tasks=tasks) for name, (make, tasks) in FINISHED.items()}
    found["unfinished"] = runs.write_unfinished(folder / "unfinished")
    records = {name: read_record(path) for name, path in found.items()}
    made = {name: Html().page([record], folder / name / "report.html") for name, record in records.items()}
    return {**made, "comparison": Html().page([*records.values()], folder / "comparison.html")}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    program = installed()
    assert program
    with Chromium(program, tmp_path_factory.mktemp("profile")) as chromium:
        yield chromium


@pytest.fixture(scope="module")
def shots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where screenshots are kept: the folder in PDTRIM_SCREENSHOTS, or one that pytest keeps for a while."""
    folder = Path(os.environ.get("PDTRIM_SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


VIEWS = [(width, dark) for width in (380, 800, 1400) for dark in (False, True)]


@pytest.mark.parametrize(("width", "dark"), VIEWS, ids=[f"{width}-{'dark' if dark else 'light'}" for width, dark in VIEWS])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_clean_and_readable(request: pytest.FixtureRequest, name: str, width: int, dark: bool, shots: Path) -> None:
    pages: dict[str, Path] = request.getfixturevalue("pages")
    browser: Chromium = request.getfixturevalue("browser")
    browser.open(pages[name], width=width, dark=dark)
    shot = browser.screenshot(shots / f"{name}-{width}-{'dark' if dark else 'light'}.png")
    assert shot.stat().st_size > 10_000
    browser.run(OPEN_ALL)
    assert browser.run(MEASURE) == []
    assert browser.problems() == []


@pytest.mark.parametrize("name", ["big", "comparison"])
def test_a_page_on_paper_is_clean_and_light(name: str, pages: dict[str, Path], browser: Chromium) -> None:
    browser.open(pages[name], width=720, dark=True)
    browser.ask("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    browser.run("dispatchEvent(new Event('beforeprint'))")
    try:
        assert browser.run("[...document.querySelectorAll('details')].every((part) => part.open)")
        assert browser.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        # 8 points are small on a screen, and not on paper.
        assert [flaw for flaw in browser.run(MEASURE) if not flaw.startswith("small")] == []
    finally:
        browser.ask("Emulation.setEmulatedMedia", media="")


WIDE = "[...document.querySelectorAll('.scroll[data-wide]')].map((place) => place.closest('section').id)"


def test_tables_take_the_room_that_a_wide_window_has(tmp_path: Path, browser: Chromium) -> None:
    folders = [
        runs.write_run(tmp_path / f"smollm2-135m-decode-five-of-thirty-{name}", replace(runs.merged(), objective=name))
        for name in ("acceptance", "perplexity")
    ]
    page = Html().page([read_record(folder) for folder in folders], tmp_path / "comparison.html")
    for width, cut in ((800, True), (1400, False)):
        browser.open(page, width=width, dark=False)
        assert ("results" in browser.run(WIDE)) == cut
    browser.run(OPEN_ALL)
    assert browser.run(MEASURE) == []


LYING = "<p style='position:absolute;top:0'>a text</p>"
LABEL = "<svg viewBox='0 0 40 20' width='40' height='20' style='overflow:visible'>{}</svg>"
FLAWS = {
    "on each other": f"<div style='position:relative'>{LYING}{LYING}</div>",
    "the page is": "<p style='width:2000px'>wide</p>",
    "beyond the viewport": "<p style='margin-left:370px;white-space:nowrap'>far to the right</p>",
    "clipped in": "<div style='overflow:hidden;width:40px;white-space:nowrap'>a text that is longer than that</div>",
    "contrast": "<p style='color:#bbbbbb;background:#ffffff'>pale</p>",
    "small": "<p style='font-size:7px'>small</p>",
    "outside its picture": LABEL.format("<text x='0' y='15'>a long label</text>"),
    "only": LABEL.format("<text x='0' y='15' style='font-size:6px'>tiny</text>"),
}


@pytest.mark.parametrize("flaw", FLAWS)
def test_what_measures_a_page_sees_flaws(flaw: str, browser: Chromium, tmp_path: Path) -> None:
    page = tmp_path / "flaw.html"
    page.write_text(f"<!DOCTYPE html><html><head><link rel='icon' href='data:,'></head><body>{FLAWS[flaw]}</body></html>")
    browser.open(page, width=380, dark=False)
    assert any(found.startswith(flaw) for found in browser.run(MEASURE))


def test_what_listens_to_a_page_hears_it(browser: Chromium, tmp_path: Path) -> None:
    page = tmp_path / "loud.html"
    page.write_text("<script>console.error('oh'); missing();</script><img src='http://127.0.0.1:9/x.png'>")
    browser.open(page, width=380, dark=False)
    told = "".join(browser.problems())
    assert "oh" in told
    assert "missing is not defined" in told
    assert "asks the network for http://127.0.0.1:9/x.png" in told


COLUMN = "[...document.querySelectorAll('#costs tbody tr')].map((row) => Number(row.cells[3].dataset.key))"
HEAD = "document.querySelector('#costs thead th:nth-child(4)')"


def test_a_table_sorts_by_a_click_and_by_the_keyboard(pages: dict[str, Path], browser: Chromium) -> None:
    browser.open(pages["big"], width=800, dark=False)
    before = browser.run(COLUMN)
    browser.run(f"{HEAD}.querySelector('button').click()")
    assert browser.run(COLUMN) == sorted(before) != before
    assert browser.run(f"{HEAD}.getAttribute('aria-sort')") == "ascending"
    browser.run(f"{HEAD}.querySelector('button').focus()")
    for kind in ("keyDown", "keyUp"):
        browser.ask("Input.dispatchKeyEvent", type=kind, key="Enter", code="Enter", windowsVirtualKeyCode=13, text="\r")
    assert browser.run(COLUMN) == sorted(before, reverse=True)
    assert browser.run(f"{HEAD}.getAttribute('aria-sort')") == "descending"


def test_the_switch_of_themes_goes_round(pages: dict[str, Path], browser: Chromium) -> None:
    browser.open(pages["joint"], width=800, dark=True)
    colours = []
    for _ in range(4):
        colours.append(browser.run("getComputedStyle(document.body).backgroundColor"))
        browser.run("document.getElementById('theme').click()")
    dark, light = "rgb(17, 20, 26)", "rgb(255, 255, 255)"
    assert colours == [dark, light, dark, dark]


def test_without_scripts_everything_is_there(pages: dict[str, Path], browser: Chromium) -> None:
    browser.ask("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["big"], width=800, dark=False)
        document = browser.ask("DOM.getDocument", depth=-1)
        text = browser.ask("DOM.getOuterHTML", nodeId=document["root"]["nodeId"])["outerHTML"]
    finally:
        browser.ask("Emulation.setScriptExecutionDisabled", value=False)
    assert 'id="theme" hidden' in text
    assert "<thead><tr>" in text.replace("\n", "")
    assert text.count("<svg") > 10
