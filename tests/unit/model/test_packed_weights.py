"""Linear layers that multiply by packed weights: the same numbers, and everything is as it was behind them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from pdtrim_core.model import packed_weights
from pdtrim_core.model.packed_weights import packed, packed_heads, packed_model
from pdtrim_core.testing import tiny_model

pytestmark = pytest.mark.numeric

MANY = packed_weights.PAYS


def layer(given: int = 24, made: int = 40, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(given, made, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


def is_packed(module: nn.Module) -> bool:
    return "forward" in vars(module)


needs_packing = pytest.mark.skipif(not packed_weights._packs(torch.float32), reason="this torch packs no weights here")


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24), (2, 2, 3, 24), (0, 24), (24,)])
def test_products_are_those_of_the_weight_as_it_was(shape: tuple[int, ...], bias: bool, dtype: torch.dtype) -> None:
    if not packed_weights._packs(dtype):
        pytest.skip(f"this processor packs no weights in {dtype}")
    linear, given = layer(bias=bias, dtype=dtype), torch.randn(shape, dtype=dtype)
    expected = linear(given)
    with torch.inference_mode(), packed(linear, products=MANY):
        assert is_packed(linear)
        found = linear(given)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 1e-2)


@needs_packing
def test_what_is_not_in_one_piece_is_multiplied_alike() -> None:
    linear, given = layer(), torch.randn(6, 4, 24)
    with torch.inference_mode(), packed(linear, products=MANY):
        for some in (given[:, -1], given.transpose(0, 1), given[::2], torch.randn(24, 5).t()):
            assert torch.allclose(linear(some), nn.functional.linear(some, linear.weight), atol=1e-5)


@needs_packing
def test_a_weight_that_two_layers_share_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = layer(), layer()
    other.weight = one.weight
    with packed(nn.ModuleList([one, other]), one, products=MANY):
        orders = [vars(each)["forward"].args[0] for each in (one, other)]
    assert orders[0] is orders[1]


@needs_packing
def test_layers_are_as_they_were_behind_it_whatever_happens_inside() -> None:
    model = tiny_model("llama").model
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(ZeroDivisionError), packed(model, products=MANY):
        _ = 1 / (sum(map(is_packed, model.modules())) == 0)
    assert [dict(vars(module)) for module in model.modules()] == before


@needs_packing
def test_within_another_one_layers_stay_packed_until_the_outer_one_ends() -> None:
    linear = layer()
    with packed(linear, products=MANY):
        outer = vars(linear)["forward"]
        with packed(linear, products=MANY):
            assert vars(linear)["forward"] is outer
        assert vars(linear)["forward"] is outer
    assert not is_packed(linear)


class Other(nn.Linear):
    """A layer of a class of its own, such as a quantised one."""


def test_layers_that_it_does_not_suit_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    trained, own, doubled = layer().requires_grad_(), Other(24, 40), layer(dtype=torch.float64)
    wrapped = layer()
    vars(wrapped)["forward"] = abs
    with packed(trained, own.requires_grad_(requires_grad=False), doubled, products=MANY), packed(wrapped, products=MANY):
        assert not any(map(is_packed, (trained, own, doubled)))
        assert wrapped(-3) == 3
    assert is_packed(wrapped)
    linear = layer()
    with packed(linear, products=MANY - 1):
        assert not is_packed(linear)
    monkeypatch.setattr(packed_weights, "MOST_BYTES", linear.weight.nbytes - 1)
    with packed(linear, products=MANY):
        assert not is_packed(linear)


@needs_packing
def test_a_model_whose_weights_stay_on_the_disk_is_not_packed_nor_is_its_head(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    head = model.head
    assert head is not None
    with packed_heads(model, model, products=MANY):
        assert [module for module in model.model.modules() if is_packed(module)] == [head]
    with packed_model(model, products=MANY):
        assert is_packed(head)
    monkeypatch.setattr(model, "on_disk", object())
    with packed_model(model, products=MANY), packed_heads(model, products=MANY):
        assert not any(map(is_packed, model.model.modules()))


@pytest.mark.parametrize("failure", [None, AttributeError, NotImplementedError, RuntimeError])
def test_where_torch_cannot_pack_weights_all_goes_on_as_it_is(
    failure: type[Exception] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_args: object) -> None:
        assert failure is not None
        raise failure

    packed_weights._packs.cache_clear()
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: failure is not None)
    monkeypatch.setattr(packed_weights, "_multiplied", fails)
    linear = layer()
    with packed(linear, products=MANY):
        assert not is_packed(linear)
    packed_weights._packs.cache_clear()
