"""The block diagram as a picture: what each stage does at every block."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdtrim_core import Plan
from pdtrim_core.api import lost_units
from pdtrim_plugins.reports.html.svg import ACCENT, INK, QUIET, SMALL, SOFT, SURFACE, TINT, WARM, Picture, Sheet, picture
from pdtrim_plugins.reports.html.wording import ranges

STAGES = ("prefill", "decode")
MEANING: Mapping[str, str] = {
    "run": "runs",
    "shrunk": "runs with fewer",
    "no-mlp": "attention alone (upper half)",
    "no-attention": "MLP alone (lower half)",
    "merged": "merged into one",
    "kv-only": "K/V only",
    "gone": "gone",
}
"""What a stage does at a block, in the words of the legend; a block in state `into` is drawn as part of the cell before it."""
LABELS = 52
"""Pixels for the names of the stages."""
BLOCKS_A_LINE = {True: 10, False: 30}


def block_diagram(name: str, plan: Plan, block_count: int, *, title: str = "Block diagram") -> Picture:
    """Return the block diagram of a plan."""
    return picture(
        name, lambda sheet: _draw(sheet, plan, block_count), title=title, description=diagram_in_words(plan, block_count)
    )


def diagram_in_words(plan: Plan, block_count: int) -> str:
    """Return the block diagram as sentences, for readers who cannot see it."""
    sentences = []
    for stage, states in _states(plan, block_count).items():
        clauses = []
        for state, meaning in _meanings(plan).items():
            blocks = [block for block, found in enumerate(states) if found == state]
            if blocks:
                clauses.append(f"{meaning}: {ranges(blocks)}")
        inside = [block for block, found in enumerate(states) if found == "into"]
        if inside:
            clauses.append(f"part of the merged block before it: {ranges(inside)}")
        sentences.append(f"{stage.capitalize()}, by block. {'; '.join(clauses)}.")
    return " ".join(sentences)


def _meanings(plan: Plan) -> dict[str, str]:
    """Return the words of the legend, with what the narrowed blocks of this plan have fewer of."""
    return {**MEANING, "shrunk": f"{MEANING['shrunk']} {lost_units((*plan.prefill, *plan.decode))}"}


def _states(plan: Plan, block_count: int) -> dict[str, list[str]]:
    return {stage: list(plan.states(stage, block_count)) for stage in ("prefill", "decode")}


def _line_length(block_count: int, *, narrow: bool) -> int:
    """Return how many blocks are drawn on a line: all of them for up to 32 on a wide screen, else a round number."""
    return block_count if not narrow and block_count <= 32 else BLOCKS_A_LINE[narrow]


def _draw(sheet: Sheet, plan: Plan, block_count: int) -> None:
    from matplotlib.patches import Patch  # noqa: PLC0415 - listings must not load it

    states, meaning = _states(plan, block_count), _meanings(plan)
    used = [state for state in meaning if any(state in row for row in states.values())]
    length = _line_length(block_count, narrow=sheet.is_narrow)
    cell = min(34.0, (sheet.width - LABELS - 2) / length)
    height, between = 28, 22
    lines = -(-block_count // length)
    (axes,) = sheet.panels(
        lines * (2 * height + between), left=0, top=sheet.legend_height([meaning[state] for state in used]), bottom=2
    )
    axes.set(xlim=(0, sheet.width - 12), ylim=(lines * (2 * height + between), 0))
    axes.set_axis_off()
    for line in range(lines):
        top = line * (2 * height + between) + 14
        first, stop = line * length, min(block_count, (line + 1) * length)
        for row, stage in enumerate(STAGES):
            middle = top + row * height + height / 2
            axes.text(0, middle, stage, va="center", ha="left", color=SOFT)
            for block in range(first, stop):
                place = (LABELS + (block - first) * cell, top + row * height + 2, cell, height - 4)
                _cell(axes, place, states[stage], block, first=first, stop=stop)
    shown = [Patch(label=meaning[state], **_STYLES[state]) for state in used]
    sheet.legend(shown)


_STYLES: Mapping[str, Mapping[str, Any]] = {
    "run": {"facecolor": ACCENT, "edgecolor": ACCENT},
    "shrunk": {"facecolor": TINT, "edgecolor": ACCENT},
    "no-mlp": {"facecolor": ACCENT, "edgecolor": QUIET, "linestyle": (0, (2.5, 2))},
    "no-attention": {"facecolor": ACCENT, "edgecolor": QUIET, "linestyle": (0, (2.5, 2))},
    "merged": {"facecolor": WARM, "edgecolor": WARM},
    "kv-only": {"facecolor": TINT, "edgecolor": TINT},
    "gone": {"facecolor": "none", "edgecolor": QUIET, "linestyle": (0, (2.5, 2))},
}
_NUMBER_COLOUR = {"run": SURFACE, "no-mlp": SURFACE, "no-attention": SURFACE, "merged": SURFACE, "gone": QUIET}
HALF = {"no-mlp": 0.0, "no-attention": 0.5}
"""Where the half of a cell begins, from its top, that stands for the part that runs: attention above the MLP."""


def _cell(axes: Any, place: tuple[float, float, float, float], states: list[str], block: int, *, first: int, stop: int) -> None:
    """Draw one block; one that is merged into the block before is drawn joined to it, unless a line begins between them."""
    from matplotlib.patches import Rectangle  # noqa: PLC0415 - listings must not load it

    left, top, width, height = place
    state = next(found for found in reversed(states[: block + 1]) if found != "into")
    joins_left = states[block] == "into" and block > first
    joins_right = block + 1 < stop and states[block + 1] == "into"
    left, width = left + (0 if joins_left else 1), width - (not joins_left) - (not joins_right)
    style = dict(_STYLES[state])
    if joins_left or joins_right:
        style["edgecolor"] = "none"
    if state in HALF:
        # The part that is gone is drawn as a block that is gone, and the other one over its half.
        axes.add_patch(Rectangle((left, top), width, height, linewidth=1, clip_on=False, **_STYLES["gone"]))
        top_of_half = top + HALF[state] * height
        axes.add_patch(Rectangle((left, top_of_half), width, height / 2, linewidth=0, clip_on=False, facecolor=ACCENT))
    else:
        axes.add_patch(Rectangle((left, top), width, height, linewidth=1, clip_on=False, **style))
    size = SMALL - 1 if place[2] > 20 else SMALL - 2
    middle = top + height * (HALF[state] + 0.26 if state in HALF else 0.52)
    axes.text(left + width / 2, middle, str(block), ha="center", va="center", fontsize=size, color=_NUMBER_COLOUR.get(state, INK))
