"""What a router asks of the experts that stay, and what fewer of them cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import DropPart, Removal, Shrink
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.routing import Routing

PLAIN = Routing(top_k=2, parameters=10)
GROUPED = Routing(top_k=4, parameters=10, groups=4, groups_chosen=2, rated_by=2)
# A block of attention 100, a shared expert of 50, and 8 experts of 1000 with a row of 10 each in the router.
BLOCK = BlockSizes(
    parameters=100 + 50 + 8 * 1010,
    active=100 + 50 + 8 * 10 + 2 * 1000,
    kv_parameters=20,
    kv_width=4,
    attention_width=4,
    units={"experts": (8, 1010)},
    parts={"mlp": (50 + 8 * 1010, 50 + 8 * 10 + 2 * 1000)},
    routing=PLAIN,
)
SIZES = ModelSizes((BLOCK, BLOCK), 2 * BLOCK.parameters + 40, 40, 2)
LESS = Plan(decode=Removal([Shrink(1, "experts", (0, 3, 5, 7))]))


@pytest.mark.parametrize(
    ("routing", "gone", "problem"),
    [
        (PLAIN, (0, 1, 2, 3, 4, 5), ""),
        (PLAIN, tuple(range(7)), "would keep 1 of its 8 experts, and its router sends each token to 2: 2 must stay at least"),
        (GROUPED, (), ""),
        (GROUPED, (0, 4, 8, 15), ""),
        (
            GROUPED,
            (0, 1, 4, 8),
            "chooses among 4 groups of experts, which must stay alike: remove the same number from each",
        ),
        (
            GROUPED,
            tuple(expert for expert in range(16) if expert % 4),
            "would keep 4 of its 16 experts, and its router chooses among 4 groups: 2 of each must stay at least",
        ),
    ],
)
def test_a_router_has_all_experts_that_it_chooses(routing: Routing, gone: tuple[int, ...], problem: str) -> None:
    assert routing.problem(16 if routing is GROUPED else 8, gone) == problem


def test_groups_are_runs_of_neighbours() -> None:
    assert GROUPED.groups_of(8) == [range(2), range(2, 4), range(4, 6), range(6, 8)]
    assert PLAIN.groups_of(8) == [range(8)]


def test_experts_that_are_gone_save_room_and_no_reading_of_a_single_token() -> None:
    assert SIZES.kept_parameters(LESS, "decode") == SIZES.parameters - 4 * 1010
    assert SIZES.kept_parameters(LESS, "prefill") == SIZES.parameters
    # A token still reads two experts; four rows of the router are gone.
    assert SIZES.decode_bytes(LESS) == SIZES.decode_bytes(Plan()) - 2 * 4 * 10
    assert SIZES.prefill_flops(LESS) == SIZES.prefill_flops(Plan())
    assert SIZES.kv_bytes(LESS) == SIZES.kv_bytes(Plan())


def test_a_batch_reads_more_experts_than_a_token_and_fewer_where_there_are_fewer() -> None:
    one, many = (SIZES.step_bytes(Plan(), batch=batch, context=0) for batch in (1, 10_000))
    assert one == SIZES.decode_bytes(Plan())
    assert many == one + 2 * 2 * 6 * 1000
    assert SIZES.step_bytes(LESS, batch=10_000, context=0) == many - 2 * 4 * 1010
    # Two tokens that each choose 2 of 8: 8 * (1 - (3 / 4) ** 2) = 3.5 experts.
    assert SIZES.step_bytes(Plan(), batch=2, context=0) == one + 2 * 2 * 1500
    without = Plan(decode=Removal([DropPart(0, "mlp"), DropPart(1, "mlp")]))
    assert SIZES.step_bytes(without, batch=10_000, context=0) == SIZES.decode_bytes(without)


def test_the_table_of_the_page_on_experts_is_right() -> None:
    """Half of the experts of a Qwen3-MoE of 30 billion weights are gone from decode, at a context of 1024."""
    expert, hidden, head = 3 * 2048 * 768, 2048, 151936 * 2048
    rest = 2 * 4096 * hidden + 2 * 512 * hidden + 2 * hidden + 2 * 128
    block = BlockSizes(
        parameters=rest + 128 * (expert + hidden),
        active=rest + 128 * hidden + 8 * expert,
        kv_parameters=2 * 512 * hidden,
        kv_width=2 * 512,
        attention_width=4096,
        units={"experts": (128, expert + hidden)},
        routing=Routing(8, hidden),
    )
    sizes = ModelSizes((block,) * 48, 48 * block.parameters + 2 * head + hidden, head, 2)
    half = Plan(decode=Removal(Shrink(number, "experts", tuple(range(64))) for number in range(48)))
    page = (Path(__file__).parents[3] / "docs" / "how-to" / "prune-experts.md").read_text(encoding="utf-8")
    kept = (2 * sizes.kept_parameters(plan, "decode") / 1e9 for plan in (Plan(), half))
    rows = [f"| weights of decode | {' | '.join(f'{value:.1f}' for value in kept)} |"]
    for batch, name in ((1, "read for a step of 1 sequence"), (8, "of 8 sequences"), (32, "of 32 sequences")):
        read = (sizes.step_bytes(plan, batch=batch, context=1024) / 1e9 for plan in (Plan(), half))
        rows.append(f"| {name} | {' | '.join(f'{value:.1f}' for value in read)} |")
    assert "\n".join(rows) in page
