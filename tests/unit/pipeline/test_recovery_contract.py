"""What a recovery must not change of a prefill whose K/V are the dense model's, and where it may."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pdtrim_core import PluginError
from pdtrim_core.api import Drop, KvOnly, Plan, Removal
from pdtrim_core.pipeline.recovery_contract import check_change
from pdtrim_core.testing import recovery_context, tiny_llama

if TYPE_CHECKING:
    from pdtrim_core.api import RecoveryContext
    from pdtrim_core.plan.elements import Stage

WEIGHT = "mlp.down_proj.weight"
PLANS = {
    "dense": Plan(decode=Removal([Drop(2)])),
    "drops": Plan(Removal([Drop(3)]), Removal([Drop(2), Drop(3)])),
    "tail": Plan(Removal([KvOnly(3), KvOnly(4), KvOnly(5)])),
    "unified": Plan.unified(Removal([Drop(3)])),
}


def changed(plan: Plan, stage: Stage, block: int) -> RecoveryContext:
    """A pair in which the MLP of one block is another one in a stage."""
    context = recovery_context(tiny_llama(), plan, [list(range(20))])
    layer = next(layer for layer in context.layers(stage) if layer.block == block)
    context.change(stage, layer, {WEIGHT: 1.1 * context.module(stage, layer).get_parameter(WEIGHT)})
    return context


@pytest.mark.parametrize(("plan", "block"), [("dense", 0), ("dense", 3), ("dense", 4), ("drops", 0), ("drops", 1), ("tail", 1)])
def test_a_block_behind_which_prefill_has_the_dense_kv_must_stay(plan: str, block: int) -> None:
    context = changed(PLANS[plan], "prefill", block)
    with pytest.raises(
        PluginError, match=rf"recovery 'mine' changed the weight {block}\.{WEIGHT} of prefill, behind which it has"
    ):
        check_change(context.pair, {}, "dense-cache", "recovery 'mine'")
    check_change(context.pair, {}, "pair", "recovery 'mine'")


@pytest.mark.parametrize(
    ("plan", "stage", "block"),
    [
        ("drops", "prefill", 2),
        ("drops", "prefill", 4),
        ("unified", "prefill", 0),
        ("dense", "decode", 0),
        ("drops", "decode", 1),
        ("tail", "decode", 0),
    ],
)
def test_a_block_in_front_of_what_is_gone_and_all_of_decode_may_change(plan: str, stage: Stage, block: int) -> None:
    check_change(changed(PLANS[plan], stage, block).pair, {}, "dense-cache", "recovery 'mine'")


def test_what_an_earlier_recovery_changed_is_not_held_against_this_one() -> None:
    context = changed(PLANS["dense"], "prefill", 0)
    check_change(context.pair, dict(context.pair.modules), "dense-cache", "recovery 'mine'")
