"""The section on which tokens of a prompt the blocks of decode read."""

from __future__ import annotations

from pdtrim_core.api import Edges, Outcome, Selection
from pdtrim_plugins.reports.html.parts import Cell, Section, Table, number, words
from pdtrim_plugins.reports.html.wording import ranges

TITLE = "What decode reads of a prompt"
LENGTHS = (128, 1024, 8192)
"""Tokens of the prompts that the table counts for."""


def reading_section(outcome: Outcome) -> Section:
    """Show which blocks read what; a run whose decode reads whole prompts has no such section."""
    if not outcome.selected:
        return Section("reading", TITLE)
    plan = outcome.plan.plan
    groups: dict[str, list[Selection]] = {}
    for selection in plan.selections:
        groups.setdefault(_what(selection), []).append(selection)
    selected = {selection.block for selection in plan.selections}
    whole = [layer.block for layer in plan.layers("decode", outcome.block_count) if layer.block not in selected]
    body = [_row(what, [one.block for one in group], [sum(group[0].read(n)) for n in LENGTHS]) for what, group in groups.items()]
    if whole:
        body.append(_row("all tokens", whole, LENGTHS))
    head = ["a block reads", "blocks", *(f"of {tokens:,} tokens" for tokens in LENGTHS)]
    lead = (
        f"Of the K/V of a prompt {len(selected)} of decode's {len(selected) + len(whole)} blocks read only some, and no more is "
        "shipped to them. Decode's own tokens are always read."
    )
    return Section(
        "reading", TITLE, lead, [Table(head, body, "Blocks of the dense model, and how many tokens of a prompt each reads")]
    )


def _what(selection: Selection) -> str:
    if isinstance(selection, Edges):
        return f"the first {100 * selection.head:.3g} % and the last {100 * selection.tail:.3g} %"
    return "the first token"


def _row(what: str, blocks: list[int], tokens: tuple[int, ...] | list[int]) -> list[Cell]:
    return [words(what), words(ranges(blocks)), *(number(count, f"{count:,}") for count in tokens)]
