"""What a stage costs, from sizes alone."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st

from pdtrim_core import PluginHost
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import Drop, DropPart, Element, KvOnly, Merge, Part, Removal, Shrink, ShrunkPart, Stage
from pdtrim_core.plan.plan import Plan
from pdtrim_core.plan.routing import Routing
from tests.unit.examples import given

# Three blocks that can be told apart. Active is less than all, as in a mixture of experts.
TINY = ModelSizes(
    blocks=(
        BlockSizes(parameters=100, active=70, kv_parameters=10, kv_width=4, attention_width=3),
        BlockSizes(parameters=1000, active=700, kv_parameters=20, kv_width=6, attention_width=5),
        BlockSizes(parameters=10000, active=7000, kv_parameters=30, kv_width=8, attention_width=7),
    ),
    parameters=11150,
    head=50,
    bytes_per_number=2,
)
T = 10
# A block over T tokens: two FLOPs a weight and token; a query meets t keys and t values at token t, two FLOPs each.
DENSE = [2 * T * block.active + 2 * 2 * sum(range(1, T + 1)) * block.attention_width for block in TINY.blocks]
KV = [2 * T * block.kv_parameters for block in TINY.blocks]
HEAD = 2 * TINY.head


def plan(prefill: list[Element], decode: list[Element]) -> Plan:
    return Plan(Removal(prefill), Removal(decode))


def test_what_k_and_v_take_beside_their_projections_is_kept_with_them() -> None:
    block = BlockSizes(parameters=100, active=100, kv_parameters=20, kv_width=4, attention_width=8, kv_norms=3)
    sizes = ModelSizes((block,) * 3, 340, 40, 4, own_head=30)
    assert sizes.kept_parameters(plan([KvOnly(0)], []), "prefill") == 340 - 100 + 20 + 3
    assert sizes.kept_parameters(plan([], [Merge(0, 1)]), "prefill") == 340 + 20 + 3
    # Nobody reads what a head behind a truncated prefill would say.
    assert sizes.kept_parameters(plan([], []).truncated_prefill(3), "prefill") == 340 - 100 + 20 + 3 - 30
    assert sizes.kept_parameters(plan([], []).truncated_prefill(3), "decode") == 340


def test_a_merged_block_has_the_sizes_of_the_block_that_it_starts_from() -> None:
    """A merge of unlike blocks, as where dense blocks and experts take turns, is a copy of the one that it keeps."""
    for keep, drop in ((0, 1), (1, 0)):
        kept, gone = TINY.blocks[keep], TINY.blocks[drop]
        unified = Plan.unified(Removal([Merge(keep, drop)]))
        assert TINY.kept_parameters(unified, "decode") == TINY.parameters - gone.parameters
        assert TINY.decode_bytes(unified) == 2 * (TINY.head + kept.active + TINY.blocks[2].active)
        assert TINY.kv_bytes(unified) == 2 * (kept.kv_width + TINY.blocks[2].kv_width)
        shadowed = Plan(decode=Removal([Merge(keep, drop)]))
        assert TINY.kept_parameters(shadowed, "prefill") == TINY.parameters + kept.kv_parameters


@pytest.mark.parametrize(
    ("prefill", "decode", "flops"),
    [
        ([], [], sum(DENSE)),
        ([], [Drop(1)], sum(DENSE)),
        ([Drop(1)], [Drop(1)], DENSE[0] + DENSE[2]),
        ([KvOnly(1)], [], DENSE[0] + KV[1] + DENSE[2]),
        ([], [Merge(0, 1)], sum(DENSE) + KV[0]),
        ([], [Merge(0, 1, "frozen")], sum(DENSE)),
        ([Merge(0, 1)], [Merge(0, 1)], DENSE[0] + DENSE[2]),
        ([KvOnly(0)], [Merge(0, 1)], KV[0] + DENSE[2]),
        ([Merge(0, 1)], [Drop(0), Drop(1)], DENSE[0] + DENSE[2]),
    ],
    ids=str,
)
def test_prefill_pays_for_what_it_computes(prefill: list[Element], decode: list[Element], flops: int) -> None:
    assert TINY.prefill_flops(plan(prefill, decode), tokens=T) == flops + HEAD


@pytest.mark.parametrize(
    ("decode", "flops"),
    [
        ([], DENSE[0] + DENSE[1] + KV[2]),
        ([Drop(2)], DENSE[0] + KV[1]),
        ([Drop(1), Drop(2)], KV[0]),
        ([Merge(1, 2)], DENSE[0] + KV[1]),
    ],
    ids=str,
)
def test_a_free_tail_costs_the_kv_of_the_last_slot(decode: list[Element], flops: int) -> None:
    assert TINY.prefill_flops(plan([], decode).truncated_prefill(3), tokens=T) == flops + HEAD


def test_a_free_tail_keeps_the_kv_of_the_last_slot() -> None:
    # The last slot is the merged pair, whose K/V prefill keeps with no shadow; before it is a shadow.
    assert TINY.kept_parameters(plan([], [Merge(1, 2)]).truncated_prefill(3), "prefill") == 50 + 100 + 20
    assert TINY.kept_parameters(plan([], [Merge(0, 1)]).truncated_prefill(3), "prefill") == 50 + 1100 + 10 + 30


@pytest.mark.parametrize(
    ("decode", "numbers"),
    [([], 7770), ([Drop(1)], 7070), ([Merge(0, 1)], 7070), ([Merge(1, 2)], 770), ([Drop(0), Drop(2)], 700)],
    ids=str,
)
def test_decode_reads_the_active_weights_of_its_slots_and_the_head(decode: list[Element], numbers: int) -> None:
    assert TINY.decode_bytes(plan([], decode)) == 2 * (numbers + 50)


@pytest.mark.parametrize(
    ("prefill", "decode", "width"),
    [([], [], 18), ([], [Drop(1)], 12), ([], [Merge(0, 1)], 12), ([KvOnly(1)], [], 18), ([KvOnly(0)], [Merge(0, 1)], 12)],
    ids=str,
)
def test_prefill_ships_the_kv_of_decode_slots(prefill: list[Element], decode: list[Element], width: int) -> None:
    assert TINY.kv_bytes(plan(prefill, decode)) == 2 * width


@pytest.mark.parametrize(
    ("prefill", "decode", "stage", "kept"),
    [
        ([], [], "decode", 11150),
        ([], [Drop(1)], "prefill", 11150),
        ([], [Drop(1)], "decode", 10150),
        ([KvOnly(2)], [], "prefill", 1150 + 30),
        ([KvOnly(0)], [Merge(0, 1)], "prefill", 10050 + 10),
        ([], [Merge(0, 1)], "decode", 10150),
        ([], [Merge(0, 1)], "prefill", 11150 + 10),
        ([], [Merge(1, 2), Drop(0)], "prefill", 11150 + 20),
        ([Drop(2)], [Merge(0, 1), Drop(2)], "prefill", 1150 + 10),
        ([], [Merge(0, 1, "frozen")], "prefill", 11150),
        ([Merge(0, 1)], [Merge(0, 1)], "prefill", 10150),
    ],
)
def test_a_stage_keeps_all_parameters_of_the_blocks_it_runs(
    prefill: list[Element], decode: list[Element], stage: Stage, kept: int
) -> None:
    assert TINY.kept_parameters(plan(prefill, decode), stage) == kept


def test_costs_are_shares_of_the_dense_model() -> None:
    a_plan = plan([Drop(1)], [Drop(1)])
    assert TINY.cost(Plan(), "prefill") == TINY.cost(Plan(), "decode") == 1.0
    assert TINY.cost(a_plan, "prefill") == TINY.prefill_flops(a_plan, 1024) / TINY.prefill_flops(Plan(), 1024)
    assert TINY.cost(a_plan, "decode") == 7120 / 7820


def test_the_cost_of_a_shrunk_block_without_units_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        TINY.decode_bytes(plan([], [Shrink(1, "mlp", (0,))]))
    assert str(caught.value) == "the cost of a shrunk block (block 1) is unknown: its mlp has no units"


def test_a_shrunk_block_costs_what_its_units_leave() -> None:
    block = BlockSizes(100, 100, kv_parameters=20, kv_width=8, attention_width=6, units={"attention": (2, 30), "mlp": (10, 4)})
    sizes = ModelSizes((block, block), parameters=200, head=0, bytes_per_number=2)
    thin: list[Element] = [Shrink(0, "attention", (1,)), Shrink(0, "mlp", (0, 9))]
    assert sizes.kept_parameters(plan([], thin), "decode") == 200 - 30 - 8
    assert sizes.kept_parameters(plan(thin[1:], thin), "prefill") == 200 - 8
    assert sizes.decode_bytes(plan([], thin)) == 2 * (200 - 38)
    assert sizes.kv_bytes(plan([], thin)) == 2 * (4 + 8)
    dense = sizes.prefill_flops(Plan(), 10)
    assert dense - sizes.prefill_flops(plan(thin, thin), 10) == 2 * 10 * 38 + 2 * 10 * 11 * 3
    assert sizes.kept_parameters(plan([KvOnly(0)], thin), "prefill") == 10 + 100


def test_a_block_without_a_part_costs_what_the_other_one_does() -> None:
    block = BlockSizes(110, 90, kv_parameters=20, kv_width=8, attention_width=6, parts={"attention": (40, 40), "mlp": (60, 40)})
    sizes = ModelSizes((block, block), parameters=220, head=0, bytes_per_number=2)
    no_attention: list[Element] = [DropPart(0, "attention")]
    no_mlp: list[Element] = [DropPart(0, "mlp")]
    assert [sizes.kept_parameters(plan([], gone), "decode") for gone in (no_attention, no_mlp)] == [180, 160]
    # Of the experts of its MLP a token reads fewer than there are.
    assert [sizes.decode_bytes(plan([], gone)) for gone in (no_attention, no_mlp)] == [2 * 140, 2 * 140]
    assert [sizes.kv_bytes(plan([], gone)) for gone in (no_attention, no_mlp)] == [2 * 8, 2 * 16]
    assert sizes.step_bytes(plan([], no_attention), batch=3, context=1000) == 2 * 140 + 3 * 1000 * 2 * 8
    dense = sizes.prefill_flops(Plan(), 10)
    assert dense - sizes.prefill_flops(plan(no_attention, no_attention), 10) == 2 * 10 * 40 + 2 * 10 * 11 * 6
    assert dense - sizes.prefill_flops(plan(no_mlp, no_mlp), 10) == 2 * 10 * 40
    assert sizes.kept_parameters(plan([Drop(0)], no_attention), "prefill") == 110


def test_the_cost_of_a_part_that_is_no_module_is_refused() -> None:
    with pytest.raises(PdtrimError) as caught:
        TINY.decode_bytes(plan([], [DropPart(1, "mlp")]))
    assert str(caught.value) == "the cost of a block without its mlp is unknown: this family's mlp is no module of its own"


@given(st.floats(min_value=0, max_value=0.99))
def test_the_count_of_a_fraction_is_the_nearest(fraction: float) -> None:
    nearest = min(abs(TINY.share_of_parameters(count) - fraction) for count in range(3))
    assert abs(TINY.share_of_parameters(TINY.blocks_for(fraction)) - fraction) == nearest


def test_a_fraction_between_two_counts_takes_fewer_blocks() -> None:
    block = BlockSizes(parameters=1, active=1, kv_parameters=1, kv_width=1, attention_width=1)
    four = ModelSizes((block,) * 4, parameters=4, head=0, bytes_per_number=1)
    assert [four.blocks_for(fraction) for fraction in (0.0, 0.125, 0.126, 0.375, 0.99)] == [0, 0, 1, 1, 3]


def test_a_mixture_of_experts_reads_its_chosen_experts() -> None:
    from pdtrim_core.testing import tiny_model

    # Hidden 32, 4 heads and 2 K/V heads of 8, MLP 48: q and o, k and v, two norms, a router, 4 experts of which 2 are read.
    attention, norms, router, expert = 2 * 32 * 32 + 2 * 32 * 16, 2 * 32, 4 * 32, 3 * 32 * 48
    sizes = tiny_model("mixtral").sizes
    rest = attention + norms + router
    units: dict[ShrunkPart, tuple[int, int]] = {"attention": (2, attention // 2), "experts": (4, expert + 32)}
    parts: dict[Part, tuple[int, int]] = {
        "attention": (attention, attention),
        "mlp": (router + 4 * expert, router + 2 * expert),
    }
    block = BlockSizes(
        rest + 4 * expert, rest + 2 * expert, 2 * 32 * 16, 32, 32, units, kv_norms=32, parts=parts, routing=Routing(2, 32)
    )
    assert sizes.blocks == (block,) * 6
    assert sizes.decode_bytes(Plan()) == 4 * (6 * (rest + 2 * expert) + 260 * 32)


def test_many_small_experts_are_counted_too() -> None:
    from pdtrim_core.testing import tiny_model

    attention, norms, router = 2 * 32 * 32 + 2 * 32 * 16 + 2 * 8, 2 * 32, 4 * 32
    rest = attention + norms + router
    expert = 3 * 32 * 24
    units: dict[ShrunkPart, tuple[int, int]] = {"attention": (2, 32 * 32 + 32 * 16), "experts": (4, expert + 32)}
    sizes = tiny_model("qwen3-moe").sizes
    parts: dict[Part, tuple[int, int]] = {
        "attention": (attention, attention),
        "mlp": (router + 4 * expert, router + 2 * expert),
    }
    block = BlockSizes(
        rest + 4 * expert, rest + 2 * expert, 2 * 32 * 16, 32, 32, units, kv_norms=32 + 8, parts=parts, routing=Routing(2, 32)
    )
    assert sizes.blocks[0] == block


def test_tied_weights_count_once_as_parameters_and_are_still_read_as_head(host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_model

    tied, untied = (tiny_model("llama", host=host, tie_word_embeddings=tie).sizes for tie in (True, False))
    assert untied.parameters - tied.parameters == 260 * 32
    assert tied.head == untied.head == 260 * 32
