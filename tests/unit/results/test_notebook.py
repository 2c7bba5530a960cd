"""What notebooks show of outcomes, plans and comparisons."""

from __future__ import annotations

from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from pdtrim_core import Drop, PdtrimError, Plan, Removal, SavedPlan, compare
from pdtrim_core.plan.notebook import ladder
from tests.browser import runs


class Balanced(HTMLParser):
    """Reads HTML whose every element must be closed; `text` is all that it shows."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open.append(tag)
        self.tags.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += f" {data}"


def shown(thing: object) -> Balanced:
    return Balanced(thing._repr_html_())  # type: ignore[attr-defined]


def test_an_outcome_has_its_blocks_its_tables_and_a_picture() -> None:
    outcome = runs.recovered()
    page = shown(outcome)
    assert outcome.model in page.text
    for words in ("prefill", "decode", "gone", "staged", "KL divergence from the dense model"):
        assert words in page.text
    assert page.tags.count("table") == 2
    assert page.tags.count("rect") == len(outcome.fidelity.variants) - 1 if outcome.fidelity else 0
    assert f"{100 * -outcome.costs[0].saved:+.1f} %" in page.text
    assert shown(runs.replaced()).tags.count("table") == 2  # no plan, so no blocks


def test_a_plan_shows_each_block_of_both_stages() -> None:
    plan = Plan(prefill=Removal([Drop(4)]), decode=Removal([Drop(2), Drop(4)]))
    page = Balanced(ladder(plan, 6))
    assert page.text.split().count("5") == 2
    assert ladder(plan, 6).count("block 4: gone") == 2
    assert ladder(plan, 6).count("block 2: gone") == 1
    saved = SavedPlan(plan, "some/model", "f", 6)
    assert ladder(plan, 6) in saved._repr_html_()
    assert "some/model" in shown(saved).text


def test_a_comparison_is_a_table_with_the_best_in_bold(tmp_path: Path) -> None:
    folders = [runs.write_run(tmp_path / name, runs.big(), tasks=True) for name in ("one", "two")]
    found = compare(folders, ["staged", "unified"])
    page = shown(found)
    assert page.tags.count("tr") == 1 + len(found.rows)
    assert "b" in page.tags
    assert all(row.name in page.text for row in found.rows)


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", "a & b", "\u202eturned"])
def test_names_of_others_are_text(evil: str) -> None:
    page = shown(replace(runs.big(), model=evil, notes=(evil,), objective=evil))
    assert "script" not in page.tags
    assert "\u202e" not in page.text


@pytest.mark.parametrize("path", ["runs/a", Path("runs/a")])
def test_a_single_path_is_told_how_to_be_a_list(path: str | Path) -> None:
    with pytest.raises(PdtrimError, match=r"compare takes a list of runs: compare\(\['runs/a', ...\]\)"):
        compare(path)  # type: ignore[arg-type]
