"""The block diagram: every block of a model in both stages, as text."""

from __future__ import annotations

from pdtrim_core.plan.elements import Stage
from pdtrim_core.plan.plan import Plan, State

STAGES: tuple[Stage, ...] = ("prefill", "decode")
SIGNS: dict[State, str] = {"run": "#", "gone": ".", "kv-only": "k", "merged": "M", "into": "<", "shrunk": "s"}
MEANING: dict[State, str] = {
    "run": "runs",
    "gone": "gone",
    "kv-only": "K/V only",
    "merged": "merged with the next block",
    "into": "merged into the block before",
    "shrunk": "runs with fewer channels",
}
GROUP = 10
GROUPS_A_LINE = 6


def draw_diagram(plan: Plan, block_count: int) -> str:
    """Return the block diagram of a plan: a line a stage, a sign a block in groups of ten, and what the signs mean."""
    rows = {stage: plan.states(stage, block_count) for stage in STAGES}
    lines = []
    for start in range(0, block_count, GROUP * GROUPS_A_LINE):
        stop = min(block_count, start + GROUP * GROUPS_A_LINE)
        marks = [str(block).ljust(GROUP) for block in range(start, stop, GROUP)]
        lines.append("block    " + " ".join(marks).rstrip())
        for stage, row in rows.items():
            signs = "".join(SIGNS[state] for state in row[start:stop])
            lines.append(f"{stage:8} " + " ".join(signs[i : i + GROUP] for i in range(0, len(signs), GROUP)))
    used = [state for state in SIGNS if any(state in row for row in rows.values())]
    lines.append("         " + "   ".join(f"{SIGNS[state]} {MEANING[state]}" for state in used))
    return "\n".join(lines)
