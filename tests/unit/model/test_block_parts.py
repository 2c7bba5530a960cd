"""Blocks without a part: what is found by structure, what trying it out refuses, and what a copy shares."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.errors import PdtrimError
from pdtrim_core.model.block_calls import Call
from pdtrim_core.model.block_layout import BlockLayout
from pdtrim_core.model.block_parts import (
    NO_MODULE,
    NOT_ADDED,
    STILL_MIXES,
    UNLIKE,
    FoundParts,
    PartModule,
    Zeros,
    found_parts,
    part_names,
    without_part,
)
from pdtrim_core.plan.elements import Part
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model

LAYOUT = BlockLayout("layers")
HIDDEN = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0))


class Mixing(nn.Module):
    """Gives each token the mean of those up to it, mapped; knows its number, as attention does."""

    def __init__(self, values: int = 2) -> None:
        super().__init__()
        self.layer_idx, self.values = 0, values
        self.o_proj = nn.Linear(8, 8)

    def forward(self, hidden_states: Tensor) -> Any:
        mean = hidden_states.cumsum(1) / torch.arange(1, hidden_states.shape[1] + 1)[:, None]
        made = self.o_proj(mean)
        return (made, *[None] * (self.values - 1)) if self.values else made


class MixingMlp(nn.Sequential):
    """An MLP that looks at all tokens."""

    def forward(self, hidden_states: Tensor) -> Tensor:
        behind: Tensor = hidden_states + hidden_states.mean(1, keepdim=True)
        for module in self:
            behind = module(behind)
        return behind


class Block(nn.Module):
    """A block in the common way, but for what an argument changes."""

    def __init__(self, *, behind: nn.Module | None = None, mixes: bool = False, adds: bool = True, values: int = 2) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), Mixing(values)
        self.mlp = (MixingMlp if mixes else nn.Sequential)(nn.Linear(8, 16), nn.Linear(16, 8))
        self.behind, self.adds, self.values = behind or nn.Identity(), adds, values

    def forward(self, hidden_states: Tensor) -> Tensor:
        made = self.attn(self.norm(hidden_states))
        made = self.behind(made[0] if self.values else made)
        hidden_states = hidden_states + made if self.adds else made
        behind: Tensor = hidden_states + self.mlp(hidden_states)
        return behind


def found(*blocks: nn.Module) -> FoundParts:
    with torch.no_grad():
        return found_parts(blocks, LAYOUT, HIDDEN, [Call((), {}, by_keyword=False)] * len(blocks))


def biased_norm() -> nn.LayerNorm:
    norm = nn.LayerNorm(8)
    nn.init.ones_(norm.bias)
    return norm


def test_the_parts_of_a_plain_block_are_found() -> None:
    modules: dict[Part, PartModule] = {"attention": PartModule("attn", 2), "mlp": PartModule("mlp", 0)}
    assert found(Block(), Block()) == FoundParts(modules, {})


@pytest.mark.parametrize("name", FAMILIES)
def test_what_structure_tells_and_trying_agree(name: str) -> None:
    model = tiny_model(name)
    names = part_names(model.blocks[0], model.layout)
    assert {part: module.name for part, module in model.parts.modules.items()} == names
    assert names.keys() == ({"attention"} if name == "opt" else {"attention", "mlp"})


def test_a_norm_behind_a_part_may_have_no_bias() -> None:
    assert found(Block(behind=nn.RMSNorm(8))).refused == {}
    assert found(Block(behind=biased_norm())).refused == {"attention": NOT_ADDED, "mlp": NOT_ADDED}


def test_a_part_that_carries_the_hidden_states_themselves_is_refused() -> None:
    assert found(Block(adds=False)).refused == {"attention": NOT_ADDED, "mlp": NOT_ADDED}


def test_a_block_that_mixes_tokens_beside_its_attention_is_refused() -> None:
    assert found(Block(mixes=True)).refused == {"attention": STILL_MIXES}


def test_one_block_that_is_another_decides() -> None:
    assert found(Block(), Block(adds=False), Block()).refused == {"attention": NOT_ADDED, "mlp": NOT_ADDED}
    assert found(Block(), Block(values=0)).refused == {"attention": UNLIKE}
    assert found(Block(), nn.Linear(8, 8)).refused == {"attention": NO_MODULE, "mlp": NO_MODULE}


def test_a_block_that_trips_over_a_missing_part_is_refused_with_the_reason() -> None:
    class Asking(Block):
        def forward(self, hidden_states: Tensor) -> Tensor:
            assert self.attn.o_proj is not None
            return super().forward(hidden_states)

    told = found(Asking()).refused
    assert told.keys() == {"attention"}
    assert told["attention"].startswith("AttributeError: 'Zeros' object has no attribute 'o_proj'")


def test_a_copy_shares_all_weights_that_are_left() -> None:
    block = Block()
    left = without_part(block, PartModule("attn", 2))
    own = dict(block.named_parameters())
    assert dict(left.named_parameters()) == {name: own[name] for name in own if not name.startswith("attn.")}
    assert isinstance(block.attn, Mixing)
    assert isinstance(left.get_submodule("attn"), Zeros)
    assert torch.equal(left(HIDDEN), HIDDEN + block.mlp(HIDDEN))


def test_zeros_are_new_each_time_in_the_form_of_the_part() -> None:
    first, nothing = Zeros(2)(hidden_states=HIDDEN)
    assert nothing is None
    first += 1
    assert float(Zeros(2)(HIDDEN)[0].abs().sum()) == 0
    assert Zeros()(HIDDEN).shape == HIDDEN.shape


def test_a_refusal_names_the_model_the_part_and_the_reason() -> None:
    model = tiny_llama()
    model.__dict__["parts"] = FoundParts({}, {"mlp": NOT_ADDED})
    with pytest.raises(PdtrimError) as caught:
        model.check_parts(["mlp"])
    assert str(caught.value) == f"tiny llama: its blocks cannot run without their mlp: {NOT_ADDED}"
    model.check_parts(["attention"])
