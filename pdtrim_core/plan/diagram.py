"""The block diagram: every block of a model in both stages, as text."""

from __future__ import annotations

from collections.abc import Iterable

from pdtrim_core.plan.elements import Element, Shrink, Stage
from pdtrim_core.plan.plan import Plan, State
from pdtrim_core.plan.selections import Edges, FirstOnly

STAGES: tuple[Stage, ...] = ("prefill", "decode")
SIGNS: dict[State, str] = {
    "run": "#",
    "gone": ".",
    "kv-only": "k",
    "merged": "M",
    "into": "<",
    "shrunk": "s",
    "no-mlp": "a",
    "no-attention": "m",
}
MEANING: dict[State, str] = {
    "run": "runs",
    "gone": "gone",
    "kv-only": "K/V only",
    "merged": "merged with the next block",
    "into": "merged into the block before",
    "shrunk": "runs with fewer",
    "no-mlp": "attention alone",
    "no-attention": "MLP alone",
}
UNITS = {"attention": "heads", "mlp": "channels", "experts": "experts"}
READ_SIGNS: dict[type, str] = {Edges: "e", FirstOnly: "1"}
READ_MEANING = {"e": "decode reads the ends of prompts", "1": "decode reads the first token of prompts"}
GROUP = 10
GROUPS_A_LINE = 6


def lost_units(elements: Iterable[Element]) -> str:
    """Return what shrinks take, as `heads, channels or experts`; nothing where no element is a shrink."""
    parts = {element.part for element in elements if isinstance(element, Shrink)}
    names = [name for part, name in UNITS.items() if part in parts]
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))


def meanings(plan: Plan) -> dict[State, str]:
    """Return what the states mean, with what the narrowed blocks of this plan have fewer of."""
    return {**MEANING, "shrunk": f"{MEANING['shrunk']} {lost_units((*plan.prefill, *plan.decode))}".rstrip()}


def draw_diagram(plan: Plan, block_count: int) -> str:
    """Return the block diagram of a plan: a line a stage, a sign a block in groups of ten, and what the signs mean.

    Where K/V are selected, a third line says what decode reads of prompts.
    """
    rows: dict[str, tuple[State, ...]] = {stage: plan.states(stage, block_count) for stage in STAGES}
    drawn = {stage: "".join(SIGNS[state] for state in row) for stage, row in rows.items()}
    selected = {selection.block: READ_SIGNS[type(selection)] for selection in plan.selections}
    if selected:
        drawn["prompts"] = "".join(selected.get(block, " ") for block in range(block_count))
    lines = []
    for start in range(0, block_count, GROUP * GROUPS_A_LINE):
        stop = min(block_count, start + GROUP * GROUPS_A_LINE)
        marks = [str(block).ljust(GROUP) for block in range(start, stop, GROUP)]
        lines.append("block    " + " ".join(marks).rstrip())
        for name, row in drawn.items():
            signs = row[start:stop]
            lines.append(f"{name:8} {' '.join(signs[i : i + GROUP] for i in range(0, len(signs), GROUP))}".rstrip())
    used = [state for state in SIGNS if any(state in row for row in rows.values())]
    meaning = meanings(plan)
    meant = [f"{SIGNS[state]} {meaning[state]}" for state in used]
    meant += [f"{sign} {READ_MEANING[sign]}" for sign in sorted(set(selected.values()))]
    lines.append("         " + "   ".join(meant))
    return "\n".join(lines)
