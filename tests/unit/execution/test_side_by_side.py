"""Several plans beside the dense model in one pass: the numbers are those of each plan alone."""

from __future__ import annotations

import pytest

from pdtrim_core.api import Drop, Item, KvOnly, Plan, Removal
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.side_by_side import compare
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.testing import tiny_llama, tiny_model
from tests.unit.execution.test_staged_model import some_items

pytestmark = pytest.mark.numeric

PLANS = (Plan(), Plan.unified(Removal([Drop(3)])), Plan(Removal([KvOnly(4), Drop(2)]), Removal([Drop(2), Drop(3)])))
ITEMS = some_items()


def only(item: Item, choice: int) -> Item:
    return Item((item.prompt_of(choice),), (item.choices[choice],), 0, (1,), f"{item.name} {choice}")


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("batch_tokens", [8, 64, 4096])
def test_every_choice_has_the_numbers_of_an_item_of_its_own(batch_tokens: int, packed: bool) -> None:
    model = tiny_llama()
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=batch_tokens, packed=packed))
    found = compare(prefix_cache, [StagedModel(prefix_cache, plan) for plan in PLANS], ITEMS)
    for plan, of_items in zip(PLANS, found, strict=True):
        alone = StagedModel(PrefixCache(model), plan)
        for item, choices in zip(ITEMS, of_items, strict=True):
            for number, tokens in enumerate(choices):
                (expected,) = alone.compared([only(item, number)])
                assert [token.same for token in tokens] == [token.same for token in expected]
                for one, other in zip(tokens, expected, strict=True):
                    assert tuple(one) == pytest.approx(tuple(other), abs=1e-4)


def test_the_sums_of_tokens_are_the_log_probabilities_of_choices() -> None:
    prefix_cache = PrefixCache(tiny_llama(), ExecutionOptions(packed=True))
    models = [StagedModel(prefix_cache, plan) for plan in PLANS]
    dense = models[0].loglikelihoods(ITEMS)
    for model, of_items in zip(models, compare(prefix_cache, models, ITEMS), strict=True):
        for item, own, of_dense in zip(of_items, model.loglikelihoods(ITEMS), dense, strict=True):
            assert [sum(token.logprob for token in tokens) for tokens in item] == pytest.approx(own, abs=1e-4)
            assert [sum(token.dense_logprob for token in tokens) for tokens in item] == pytest.approx(of_dense, abs=1e-4)


def test_a_model_that_replaced_the_dense_one_is_beside_it() -> None:
    dense, other = tiny_llama(), tiny_llama(seed=1)
    prefix_cache = PrefixCache(other, dense=dense)
    (found,) = compare(prefix_cache, [StagedModel(prefix_cache, Plan())], ITEMS)
    (expected,) = StagedModel(PrefixCache(other, dense=dense), Plan()).compared([only(ITEMS[2], 0)])
    for one, its in zip(found[2][0], expected, strict=True):
        assert tuple(one) == pytest.approx(tuple(its), abs=1e-4)
    assert found[2][0][0].divergence > 0.1


def test_no_batch_is_kept_behind_its_pass() -> None:
    model = tiny_model("llama")
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=16))
    compare(prefix_cache, [StagedModel(prefix_cache, plan) for plan in PLANS], ITEMS)
    assert not prefix_cache._prepared
    assert prefix_cache._spent == 0
