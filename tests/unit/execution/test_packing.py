"""Whether choices and items may share rows: tried out, and refused where a model takes no mask or positions of ours."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pdtrim_core.api import Item, PdtrimError
from pdtrim_core.execution.packing import packing_agrees
from pdtrim_core.testing import FAMILIES, tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import some_items

ITEMS = tuple(some_items())


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_choices_may_share_a_row_in_every_family(family: str) -> None:
    assert packing_agrees(tiny_model(family), ITEMS, batch_tokens=64)


@pytest.mark.numeric
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_choices_may_share_a_row_on_both_attention_backends(backend: str) -> None:
    model = tiny_llama(attn_implementation=backend)
    assert packing_agrees(model, ITEMS, batch_tokens=64)


def test_a_coarse_number_format_is_not_taken_for_another_answer() -> None:
    assert packing_agrees(tiny_llama(dtype=torch.bfloat16), ITEMS, batch_tokens=64)


def changing_arguments(change: Any) -> Any:
    """Return a tiny model whose body changes the arguments that it is given."""
    model = tiny_llama()
    forward = model.model.model.forward

    def changed(*args: Any, **kwargs: Any) -> Any:
        change(kwargs)
        return forward(*args, **kwargs)

    model.model.model.forward = changed
    return model


@pytest.mark.parametrize("ignored", ["position_ids", "attention_mask"])
def test_a_model_that_ignores_what_keeps_choices_apart_gets_a_row_a_choice(ignored: str) -> None:
    model = changing_arguments(lambda kwargs: kwargs.pop(ignored, None))
    assert not packing_agrees(model, ITEMS, batch_tokens=64)


@pytest.mark.parametrize("error", [RuntimeError, TypeError, ValueError, IndexError, PdtrimError])
def test_a_model_that_cannot_take_a_mask_of_ours_gets_a_row_a_choice(error: type[Exception]) -> None:
    def refuse(kwargs: dict[str, Any]) -> None:
        if kwargs.get("attention_mask") is not None:
            raise error("no mask, please")

    assert not packing_agrees(changing_arguments(refuse), ITEMS, batch_tokens=64)


def test_what_goes_wrong_otherwise_is_not_hidden() -> None:
    def fail(kwargs: dict[str, Any]) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        packing_agrees(changing_arguments(fail), ITEMS, batch_tokens=64)


def test_items_with_several_choices_are_tried_before_others() -> None:
    model = changing_arguments(lambda kwargs: kwargs.pop("position_ids", None))
    forked, plain = Item((tuple(range(30)),), ((1, 2), (3, 4)), 0, (1, 1), "forked"), Item(((5, 6),), ((7,),), 0, (1,), "plain")
    # So few tokens a batch that each item is a group of its own, the short one first.
    assert packing_agrees(model, (plain,), batch_tokens=8)
    assert not packing_agrees(model, (plain, forked), batch_tokens=8)
