"""Linear layers that multiply by packed weights: the same numbers, whatever becomes of the modules."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from pdtrim_core.model import packed_weights
from pdtrim_core.model.packed_weights import packed
from pdtrim_core.testing import tiny_model

pytestmark = pytest.mark.numeric

MANY = packed_weights.PAYS
Products = Callable[[nn.Module], int]


def layer(given: int = 24, made: int = 40, *, bias: bool = False, dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(given, made, bias=bias, dtype=dtype).requires_grad_(requires_grad=False)


@pytest.fixture
def packed_products(monkeypatch: pytest.MonkeyPatch) -> Products:
    """Return a function that runs a layer once and tells how many products with packed weights that made."""
    multiplied, made = packed_weights._multiplied, list[None]()

    def counted(order: Tensor, bias: Tensor | None, given: Tensor) -> Tensor:
        made.append(None)
        return multiplied(order, bias, given)

    def products(module: nn.Module) -> int:
        before = len(made)
        weight = next(module.parameters())
        module(weight.new_ones(2, weight.shape[1]))
        return len(made) - before

    packed_weights._packs(torch.float32)
    packed_weights._packs(torch.bfloat16)
    monkeypatch.setattr(packed_weights, "_multiplied", counted)
    return products


needs_packing = pytest.mark.skipif(not packed_weights._packs(torch.float32), reason="this torch packs no weights here")


@needs_packing
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 24), (7, 24), (3, 5, 24), (2, 2, 3, 24), (0, 24), (24,)])
def test_products_are_those_of_the_weight_as_it_was(
    shape: tuple[int, ...], bias: bool, dtype: torch.dtype, packed_products: Products
) -> None:
    if not packed_weights._packs(dtype):
        pytest.skip(f"this processor packs no weights in {dtype}")
    one, given = layer(bias=bias, dtype=dtype), torch.randn(shape, dtype=dtype)
    expected = one(given)
    with torch.inference_mode(), packed(modules=[one], products=MANY):
        assert packed_products(one) == 1
        found = one(given)
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5 if dtype == torch.float32 else 1e-2)


@needs_packing
def test_what_is_not_in_one_piece_is_multiplied_alike() -> None:
    one, given = layer(), torch.randn(6, 4, 24)
    some = (given[:, -1], given.transpose(0, 1), given[::2], torch.randn(24, 5).t())
    expected = [linear(each, one.weight) for each in some]
    with torch.inference_mode(), packed(modules=[one], products=MANY):
        for each, wanted in zip(some, expected, strict=True):
            assert torch.allclose(one(each), wanted, atol=1e-5)


@needs_packing
def test_a_weight_that_layers_share_is_packed_once_and_known_in_a_copy_of_them(
    monkeypatch: pytest.MonkeyPatch, packed_products: Products
) -> None:
    made, pack = list[Tensor](), packed_weights._packed

    def counted(weight: Tensor) -> Tensor:
        made.append(weight)
        return pack(weight)

    monkeypatch.setattr(packed_weights, "_packed", counted)
    one, other = layer(), layer()
    other.weight = one.weight
    with packed(modules=[nn.ModuleList([one, other]), one], products=MANY):
        assert len(made) == 1
        copied = copy.deepcopy(other, {id(one.weight): one.weight})
        assert [packed_products(each) for each in (one, other, copied)] == [1, 1, 1]
        assert packed_products(copy.deepcopy(one)) == 0  # it has a weight of its own


@needs_packing
def test_a_layer_that_gets_another_weight_inside_multiplies_by_that(packed_products: Products) -> None:
    one = layer()
    with packed(modules=[one], products=MANY):
        one.weight = nn.Parameter(-one.weight, requires_grad=False)
        assert torch.equal(one(torch.eye(24)), one.weight.t())
        assert packed_products(one) == 0


@needs_packing
def test_it_ends_with_the_context_whatever_happens_inside_and_one_within_another_changes_nothing(
    packed_products: Products,
) -> None:
    one = layer()
    with packed(modules=[one], products=MANY):
        with packed(modules=[one], products=MANY):
            assert packed_products(one) == 1
        assert packed_products(one) == 1
    with contextlib.suppress(ZeroDivisionError), packed(modules=[one], products=MANY):
        _ = 1 / (packed_products(one) - 1)
    assert packed_products(one) == 0


@needs_packing
def test_gradients_go_through_a_layer_as_ever() -> None:
    one, given = layer(), torch.randn(3, 24, requires_grad=True)
    with packed(modules=[one], products=MANY):
        one(given).sum().backward()
    assert given.grad is not None
    assert torch.allclose(given.grad, one.weight.sum(dim=0).expand(3, 24), atol=1e-5)


class Other(nn.Linear):
    """A layer of a class of its own, such as a quantised one."""


def test_layers_that_it_does_not_suit_are_left_alone(packed_products: Products) -> None:
    trained, own, doubled = (
        layer().requires_grad_(),
        Other(24, 40).requires_grad_(requires_grad=False),
        layer(dtype=torch.float64),
    )
    with packed(modules=[trained, own, doubled], products=MANY):
        assert [packed_products(each) for each in (trained, own, doubled)] == [0, 0, 0]
    few = layer()
    with packed(modules=[few], products=MANY - 1):
        assert packed_products(few) == 0


@needs_packing
def test_there_is_room_for_so_many_bytes_and_what_is_named_first_is_packed_first(
    monkeypatch: pytest.MonkeyPatch, packed_products: Products
) -> None:
    one, large, small = layer(), layer(made=80), layer()
    monkeypatch.setattr(packed_weights, "MOST_BYTES", one.weight.nbytes + small.weight.nbytes)
    with packed(modules=[one, large, small], products=MANY):
        assert [packed_products(each) for each in (one, large, small)] == [1, 0, 1]


@needs_packing
def test_a_model_whose_weights_stay_on_the_disk_is_not_packed(monkeypatch: pytest.MonkeyPatch, packed_products: Products) -> None:
    model = tiny_model("llama")
    head, of_block = model.head, model.blocks[0].get_submodule("mlp")
    assert head is not None
    with packed(model, products=MANY):
        assert [packed_products(head), packed_products(of_block)] == [1, 3]
    monkeypatch.setattr(model, "on_disk", object())
    with packed(model, products=MANY):
        assert [packed_products(head), packed_products(of_block)] == [0, 0]


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
    one, given = layer(), torch.ones(2, 24)
    expected = one(given)
    with packed(modules=[one], products=MANY):
        assert torch.equal(one(given), expected)
    packed_weights._packs.cache_clear()
