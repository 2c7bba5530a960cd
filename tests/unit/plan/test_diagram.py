"""The block diagram: every block of a model in both stages, as text."""

from __future__ import annotations

from pdtrim_core.plan.diagram import MEANING, SIGNS, draw_diagram, lost_units
from pdtrim_core.plan.elements import Drop, DropPart, KvOnly, Merge, Removal, Shrink, Stage
from pdtrim_core.plan.plan import Plan, State

ALL_STATES = Plan(
    prefill=Removal([Drop(3), Merge(8, 9), KvOnly(12), KvOnly(20), Shrink(25, "mlp", (0,))]),
    decode=Removal([Drop(3), Drop(5), Merge(8, 9), Merge(13, 12), Shrink(25, "attention", (1,)), Shrink(25, "mlp", (0,))]),
)


def test_thirty_blocks_in_every_state() -> None:
    assert draw_diagram(ALL_STATES, 30) == (
        "block    0          10         20\n"
        "prefill  ###.####M< ##k<###### k####s####\n"
        "decode   ###.#.##M< ##M<###### #####s####\n"
        "         # runs   . gone   k K/V only   M merged with the next block   < merged into the block before   "
        "s runs with fewer heads or channels"
    )


def test_what_is_narrowed_is_named() -> None:
    heads, channels, experts = Shrink(0, "attention", (1,)), Shrink(0, "mlp", (2,)), Shrink(1, "experts", (0,))
    assert lost_units([Drop(2), channels]) == "channels"
    assert lost_units([experts, heads]) == "heads or experts"
    assert lost_units([experts, channels, heads]) == "heads, channels or experts"
    assert not lost_units([Drop(2)])


def test_many_blocks_take_several_lines() -> None:
    plan = Plan(decode=Removal([Drop(0), Drop(59), Drop(60), Drop(129)]))
    full = "##########"
    assert draw_diagram(plan, 130) == (
        "block    0          10         20         30         40         50\n"
        f"prefill  {full} {full} {full} {full} {full} {full}\n"
        f"decode   .######### {full} {full} {full} {full} #########.\n"
        "block    60         70         80         90         100        110\n"
        f"prefill  {full} {full} {full} {full} {full} {full}\n"
        f"decode   .######### {full} {full} {full} {full} {full}\n"
        "block    120\n"
        f"prefill  {full}\n"
        "decode   #########.\n"
        "         # runs   . gone"
    )


def test_the_dense_plan_has_one_sign() -> None:
    assert draw_diagram(Plan(), 3) == "block    0\nprefill  ###\ndecode   ###\n         # runs"


def states(plan: Plan, stage: Stage, block_count: int) -> list[State]:
    return [plan.state(stage, block) for block in range(block_count)]


def test_a_pair_whose_kv_alone_are_kept_stands_in_its_first_block() -> None:
    plan = Plan(Removal([KvOnly(1)]), Removal([Merge(2, 1)]))
    assert states(plan, "prefill", 4) == ["run", "kv-only", "into", "run"]
    assert states(plan, "decode", 4) == ["run", "merged", "into", "run"]


def test_a_pair_that_prefill_runs_is_run_in_both_blocks() -> None:
    assert states(Plan(decode=Removal([Merge(2, 1)])), "prefill", 4) == ["run"] * 4


def test_every_state_has_a_sign_of_its_own_and_a_meaning() -> None:
    assert len(set(SIGNS.values())) == len(SIGNS)
    assert SIGNS.keys() == MEANING.keys()


def test_the_diagram_is_ascii_and_fits_a_terminal() -> None:
    text = draw_diagram(ALL_STATES, 130)
    assert text.isascii()
    assert max(len(line) for line in text.splitlines()[:-1]) <= 80


def test_a_block_without_a_part_is_drawn_as_the_other_one() -> None:
    plan = Plan(Removal([DropPart(1, "mlp")]), Removal([DropPart(0, "attention"), DropPart(1, "mlp"), DropPart(2, "mlp")]))
    assert draw_diagram(plan, 4) == (
        "block    0\nprefill  #a##\ndecode   maa#\n         # runs   a attention alone   m MLP alone"
    )
