"""The ladder: every block of a model in both stages, as text."""

from __future__ import annotations

from typing import Literal

from pdtrim_core.elements import Drop, KvOnly, Merge, Shrink, Stage
from pdtrim_core.plan import Plan

State = Literal["run", "gone", "kv-only", "merged", "into", "shrunk"]
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


def states(plan: Plan, stage: Stage, block_count: int) -> list[State]:
    """Return the state of each block in one stage."""
    return [_state(plan, stage, block) for block in range(block_count)]


def _state(plan: Plan, stage: Stage, block: int) -> State:
    elements = plan.removal(stage).at(block)
    if not elements:
        pairs = [e for e in plan.decode.at(block) if isinstance(e, Merge) and block == e.blocks[1]]
        inside = stage == "prefill" and any(KvOnly(pair.blocks[0]) in plan.prefill for pair in pairs)
        return "kv-only" if inside else "run"
    match elements[0]:
        case Drop():
            return "gone"
        case KvOnly():
            return "kv-only"
        case Shrink():
            return "shrunk"
        case Merge() as merge:
            return "merged" if block == merge.blocks[0] else "into"


def draw_ladder(plan: Plan, block_count: int) -> str:
    """Return the ladder of a plan: a line a stage, a sign a block in groups of ten, and what the signs mean."""
    rows = {stage: states(plan, stage, block_count) for stage in ("prefill", "decode")}
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
