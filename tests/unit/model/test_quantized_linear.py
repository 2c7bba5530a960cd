from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pdtrim_core.model.quantized_linear import QuantizedLinear, linears_in, other_matrices, rounds_alike, with_linears
from pdtrim_core.testing import tiny_llama, tiny_model


def halves(inputs: Tensor) -> Tensor:
    return (2 * inputs).round() / 2


def layer(*, bias: bool = True) -> nn.Linear:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Linear(8, 6, bias=bias).requires_grad_(requires_grad=False)


GIVEN = torch.randn(3, 8, generator=torch.Generator().manual_seed(1))


def test_it_computes_with_its_own_weight_and_the_bias_of_its_source() -> None:
    source = layer()
    found = QuantizedLinear(source, halves(source.weight), "halves")
    assert torch.equal(found(GIVEN), nn.functional.linear(GIVEN, halves(source.weight), source.bias))
    assert found.bias is source.bias
    assert found.source is source
    assert set(dict(found.named_parameters())) == {"weight", "bias"}


def test_what_it_is_given_is_rounded_where_the_format_says_so() -> None:
    source = layer(bias=False)
    found = QuantizedLinear(source, source.weight, "halves", halves)
    assert torch.equal(found(GIVEN), nn.functional.linear(halves(GIVEN), source.weight))


@pytest.mark.parametrize("bias", [True, False])
def test_some_of_its_outputs_are_those_of_the_whole(bias: bool) -> None:
    source = layer(bias=bias)
    whole = QuantizedLinear(source, halves(source.weight), "halves", halves)
    some = whole.with_rows(torch.tensor([1, 4]))
    assert torch.allclose(some(GIVEN), whole(GIVEN)[:, [1, 4]])
    assert torch.equal(some.source.weight, source.weight[[1, 4]])


def test_parts_are_alike_where_they_round_what_they_are_given_by_the_same_format() -> None:
    source = layer()
    plain, weights, both, other = (
        source,
        QuantizedLinear(source, source.weight, "a"),
        QuantizedLinear(source, source.weight, "b", halves),
        QuantizedLinear(source, source.weight, "c", halves),
    )
    assert rounds_alike(plain, weights)
    assert rounds_alike(both, both)
    assert not rounds_alike(plain, both)
    assert not rounds_alike(weights, both)
    assert not rounds_alike(both, other)


def test_a_block_with_other_layers_shares_all_else() -> None:
    block = tiny_llama().blocks[0]
    (name, old), *_ = linears_in(block).items()
    changed = with_linears(block, {name: QuantizedLinear(old, halves(old.weight), "halves")})
    own = dict(block.named_parameters())
    assert [key for key, weight in changed.named_parameters() if weight is not own[key]] == [f"{name}.weight"]
    assert block.get_submodule(name) is old


def test_matrices_of_experts_are_in_no_linear_layer() -> None:
    assert other_matrices(tiny_llama().blocks[0]) == []
    assert any("experts" in name for name in other_matrices(tiny_model("qwen3-moe").blocks[0]))
