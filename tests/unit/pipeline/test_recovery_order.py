"""The order of recoveries: one that changes what comes to layers that an earlier one fitted is named, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.api import Drop, KvOnly, Plan, Removal
from pdtrim_core.pipeline.recovery_order import Changed, changed_by, order_notes
from pdtrim_core.testing import tiny_llama
from pdtrim_plugins.recoveries import Distill, ExactFirstToken, Fold, KvRefit
from tests.unit.recovery_pairs import recovery_context, some_texts

if TYPE_CHECKING:
    from pdtrim_core.api import Recovery

GAP = Plan(Removal([Drop(2), KvOnly(4), KvOnly(5)]), Removal([Drop(1), Drop(2)]))
"""Prefill loses a block in front of those that it passes by."""
TWO_RUNS = Plan(Removal([Drop(2)]), Removal([Drop(2), Drop(4)]))
TAIL = Plan(Removal([KvOnly(4), KvOnly(5)]), Removal([Drop(1)]))
UNIFIED = Plan.unified(Removal([Drop(2)]))
QUICK: dict[str, Any] = {"steps": 2, "batch": 4, "lr": 1e-3, "check_every": 1}
FIRST, DECODE, PREFILL = ExactFirstToken(), Fold(stage="decode"), Fold(stage="prefill")
TRAINED, TRAINED_PAIR = Distill(**QUICK), Distill(stage="prefill", contract="pair", **QUICK)


def notes(folder: Path, plan: Plan, *recoveries: Recovery) -> list[tuple[int, int, str]]:
    """Which recovery of a list, counted from 1, is said to come too late for which other one, and at which block."""
    context = recovery_context(tiny_llama(), plan, folder=folder, texts=some_texts(32, tokens=20))
    done: list[Changed] = []
    found = []
    for number, recovery in enumerate(recoveries, start=1):
        start = dict(context.pair.modules)
        recovery.recover(context)
        now = changed_by(f"<{number}>", context.pair, start)
        assert now.places or now.table
        for note in order_notes(context.pair, done, now):
            late, _, rest = note.partition(" changed what comes to ")
            place, _, rest = rest.partition(", to which ")
            found.append((int(late[1:-1]), int(rest[1]), place))
        done.append(now)
    return found


@pytest.mark.parametrize(
    ("plan", "recoveries", "expected"),
    [
        (GAP, [KvRefit(), PREFILL], [(2, 1, "block 4 of prefill")]),
        (GAP, [KvRefit(), Fold()], [(2, 1, "block 4 of prefill")]),
        (GAP, [DECODE, KvRefit(), PREFILL], [(3, 2, "block 4 of prefill")]),  # decode is folded in front of what prefill lacks
        (TWO_RUNS, [DECODE, PREFILL], [(2, 1, "block 3 of decode")]),
        (GAP, [KvRefit(), FIRST], [(2, 1, "block 4 of prefill")]),
        (GAP, [TRAINED, PREFILL, KvRefit()], [(2, 1, "block 3 of decode"), (3, 1, "block 4 of decode")]),
        (TAIL, [DECODE, KvRefit()], []),  # what is folded stands in front of all that is fitted
        (TAIL, [TRAINED, DECODE], [(2, 1, "block 2 of decode")]),
        (TAIL, [TRAINED, KvRefit()], [(2, 1, "block 5 of decode")]),
        (TAIL, [TRAINED, FIRST], [(2, 1, "block 4 of decode")]),
        (TAIL, [TRAINED, TRAINED_PAIR], [(2, 1, "block 2 of decode")]),
        (UNIFIED, [TRAINED, Fold()], [(2, 1, "block 3 of prefill")]),
    ],
)
def test_a_recovery_that_comes_too_late_is_named(
    plan: Plan, recoveries: list[Recovery], expected: list[tuple[int, int, str]], tmp_path: Path
) -> None:
    assert notes(tmp_path, plan, *recoveries) == expected


@pytest.mark.parametrize(
    ("plan", "recoveries"),
    [
        (GAP, [FIRST, PREFILL, KvRefit(), DECODE, TRAINED]),
        (GAP, [PREFILL, KvRefit(), DECODE]),
        (TAIL, [FIRST, KvRefit(), Fold(), TRAINED]),
        (TAIL, [KvRefit(), FIRST]),  # K/V-only layers hand on what came to them
        (TAIL, [KvRefit(), KvRefit()]),
        (TAIL, [Fold(), Distill(stage="both", **QUICK)]),
        (TAIL, [Fold(), Distill(stage="both", contract="pair", **QUICK)]),
        (UNIFIED, [Fold(), TRAINED]),
    ],
)
def test_a_list_in_order_is_not_noted(plan: Plan, recoveries: list[Recovery], tmp_path: Path) -> None:
    assert notes(tmp_path, plan, *recoveries) == []
