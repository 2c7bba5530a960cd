"""The objectives against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

import pytest

from pdtrim_core.api import Drop, Item, Objective, Plan, Removal
from pdtrim_core.data.readings import Underway
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import answers
from pdtrim_core.fidelity.measure import Subject, measure_all
from pdtrim_core.pipeline.objective_on_items import ObjectiveOnItems
from pdtrim_core.pipeline.objective_value import Measurement
from pdtrim_core.search.stopping import Stop
from pdtrim_core.testing import tiny_llama
from pdtrim_core.testing.contracts import FixedStaged
from pdtrim_plugins.objectives import Acceptance, Accuracy, Divergence, Margin, Perplexity


def item(*sizes: int, answer: int = 0, tokens: tuple[int, ...] | None = None, name: str = "q") -> Item:
    """Return an item whose choices have so many bytes, and so many tokens (one each if not told)."""
    lengths = tokens or (1,) * len(sizes)
    return Item(((1, 2),), tuple(tuple(range(length)) for length in lengths), answer, sizes, name)


def values(objective: Accuracy | Margin | Perplexity, **of_items: tuple[Item, tuple[float, ...]]) -> list[float]:
    sums = dict(of_items.values())
    return list(objective.item_values(FixedStaged(sums), tuple(sums)))


def test_accuracy_is_one_where_the_right_choice_is_the_likeliest() -> None:
    right = (item(4, 4, answer=0, name="right"), (-1.0, -2.0))
    wrong = (item(4, 4, answer=1, name="wrong"), (-1.0, -2.0))
    assert values(Accuracy(), right=right, wrong=wrong) == [1.0, 0.0]
    assert Accuracy().score(0.5) == 50.0


def test_the_first_of_equal_choices_is_the_answer() -> None:
    first = (item(4, 4, 4, answer=0, name="first"), (-3.0, -3.0, -3.0))
    last = (item(4, 4, 4, answer=2, name="last"), (-3.0, -3.0, -3.0))
    assert values(Accuracy(), first=first, last=last) == [1.0, 0.0]


def test_per_byte_divides_by_the_length_of_a_choice() -> None:
    """-4 over 2 bytes is less likely a byte than -6 over 6."""
    asked = (item(2, 6, answer=1), (-4.0, -6.0))
    assert values(Accuracy(), asked=asked) == [0.0]
    assert values(Accuracy(per_byte=True), asked=asked) == [1.0]


def test_margin_is_the_probability_among_the_choices() -> None:
    """0.3 against 0.1 is 3 of 4."""
    asked = (item(1, 1, answer=0), (math.log(0.3), math.log(0.1)))
    (value,) = values(Margin(), asked=asked)
    assert value == pytest.approx(0.75)
    assert Margin().score(value) == pytest.approx(75.0)


def test_margin_sees_differences_alone_however_small_the_probabilities() -> None:
    near = (item(1, 1, answer=1, name="near"), (-2.0, -1.0))
    far = (item(1, 1, answer=1, name="far"), (-2002.0, -2001.0))
    one, other = values(Margin(), near=near, far=far)
    assert one == pytest.approx(other)


@pytest.mark.parametrize(("per", "scale"), [("byte", (2, 6)), ("token", (1, 4))])
def test_margin_divides_each_choice_by_its_length(per: Literal["byte", "token"], scale: tuple[int, int]) -> None:
    asked = (item(2, 6, tokens=(1, 4), answer=0), (-4.0, -6.0))
    (value,) = values(Margin(per=per), asked=asked)
    one, other = (math.exp(total / length) for total, length in zip((-4.0, -6.0), scale, strict=True))
    assert value == pytest.approx(one / (one + other))


def test_margin_is_not_decided_by_one_long_choice() -> None:
    """A right choice of 80 bytes is not hopeless beside one of 40 that is a little less likely a byte."""
    asked = (item(40, 80, answer=1, tokens=(10, 20)), (-32.0, -60.0))
    (value,) = values(Margin(), asked=asked)
    assert value == pytest.approx(1 / (1 + math.exp(-0.05)))


def test_margin_is_worth_percent_of_a_probability() -> None:
    assert Margin().score(0.25) == 25.0


def test_a_choice_that_cannot_be_has_no_probability_and_is_no_error() -> None:
    asked = (item(1, 1, answer=1), (-1.0, -5000.0))
    assert values(Margin(), asked=asked) == [0.0]


def test_perplexity_counts_the_tokens_of_the_right_choice() -> None:
    """Two tokens of probability 1/4 each have perplexity 4, worth 25 points."""
    asked = (item(3, 3, answer=1, tokens=(5, 2)), (-1.0, 2 * math.log(1 / 4)))
    (value,) = values(Perplexity(), asked=asked)
    assert value == pytest.approx(math.log(4))
    assert Perplexity().score(value) == pytest.approx(25.0)


def test_perplexity_weighs_every_token_the_same() -> None:
    short, long = item(3, tokens=(1,), name="short"), item(9, tokens=(3,), name="long")
    objective = Perplexity()
    assert [objective.weight(short), objective.weight(long)] == [1.0, 3.0]
    one, three = values(objective, short=(short, (math.log(1 / 2),)), long=(long, (3 * math.log(1 / 4),)))
    mean = (objective.weight(short) * one + objective.weight(long) * three) / 4
    # -log(1/2 * 1/4 * 1/4 * 1/4) / 4 tokens
    assert mean == pytest.approx(7 * math.log(2) / 4)


def test_kl_is_the_divergence_that_the_model_tells() -> None:
    """From a dense model that is certain, a right choice of probability 1/4 and 1/4 is two times ln 2 a token away."""
    asked = item(3, 3, answer=1, tokens=(5, 2))
    staged = FixedStaged({asked: (-1.0, 2 * math.log(1 / 4))})
    (value,) = Divergence().item_values(staged, [asked])
    assert value == pytest.approx(2 * math.log(2))
    assert Divergence().score(value) == pytest.approx(25.0)


def test_kl_weighs_every_token_of_the_right_choice_the_same() -> None:
    assert [Divergence().weight(item(3, 3, answer=a, tokens=(1, 4))) for a in (0, 1)] == [1.0, 4.0]
    answered = replace(item(3, 3, answer=1, tokens=(1, 4)), dense_answer=(1, 2, 3))
    assert [Divergence(along=along).weight(answered) for along in ("both", "answers", "right")] == [7.0, 3.0, 4.0]


def test_kl_asks_for_answers_of_the_dense_model_where_it_goes_along_them() -> None:
    assert [Divergence(along=along, answer_tokens=9).answer_length for along in ("both", "answers", "right")] == [9, 9, 0]
    assert {Accuracy().answer_length, Margin().answer_length, Perplexity().answer_length} == {0}


def test_kl_gives_the_dense_model_all_points_and_fewer_the_more_is_gone() -> None:
    prefix_cache = PrefixCache(tiny_llama())
    items = [Item(((1, 2, n),), ((5, n), (6,)), n % 2, (1, 1), str(n)) for n in range(6)]
    plans = [Plan.unified(Removal(map(Drop, gone))) for gone in ((), (3,), (1, 3, 5))]
    objective = ObjectiveOnItems(Divergence(), items, "kl")
    readings = [Measurement(lambda: prefix_cache, objective)(plan, None, None) for plan in plans]
    dense, one, three = (reading.score or 0.0 for reading in readings)
    assert dense == 100.0 > one > three >= 0
    values = StagedModel(prefix_cache, plans[1]).divergences(items)
    mean = sum(v * len(i.choices[i.answer]) for v, i in zip(values, items, strict=True)) / 9
    assert one == pytest.approx(100 * math.exp(-mean))


def test_acceptance_is_the_overlap_that_the_model_tells() -> None:
    """A dense model that is certain accepts a token as often as it is drafted."""
    asked = item(3, 3, answer=1, tokens=(5, 2))
    staged = FixedStaged({replace(asked, dense_answer=(1, 2)): (-1.0, 2 * math.log(1 / 4))})
    (value,) = Acceptance().item_values(staged, list(staged.sums))
    assert value == pytest.approx(1 / 4)
    assert Acceptance().score(value) == pytest.approx(25.0)


def test_acceptance_goes_along_the_answers_and_weighs_every_token_of_them_the_same() -> None:
    answered = replace(item(3, 3, answer=1, tokens=(1, 4)), dense_answer=(1, 2, 3))
    assert Acceptance().along == "answers"
    assert [Acceptance(along=along).weight(answered) for along in ("both", "answers", "right")] == [7.0, 3.0, 4.0]
    assert [Acceptance(along=along, answer_tokens=9).answer_length for along in ("both", "answers", "right")] == [9, 9, 0]


def test_acceptance_is_what_fidelity_finds_along_the_same_answers() -> None:
    """Each on its own way: the objective item by item, fidelity with all figures side by side."""
    model = tiny_llama()
    items = [Item(((1, 2, n, 7),), ((5, n), (6, 3)), n % 2, (1, 1), str(n)) for n in range(6)]
    made = answers(TwoPhaseModel(model, Plan()), [i.prompts[0] for i in items], 8)
    answered = [replace(i, dense_answer=tuple(answer)) for i, answer in zip(items, made, strict=True)]
    plans = [Plan(prefill=Removal([Drop(5)]), decode=Removal([Drop(3), Drop(5)])), Plan.unified(Removal([Drop(3), Drop(5)]))]
    prefix_cache = PrefixCache(model)
    objective = ObjectiveOnItems(Acceptance(), answered, "acceptance")
    ours = [Measurement(lambda: prefix_cache, objective)(plan, None, None).score for plan in plans]
    found = measure_all([Subject(model, plan) for plan in plans], items, length=8, code={})
    assert ours == pytest.approx([100 * of.metrics["acceptance"].value for of in found], rel=1e-5)
    assert ours[0] != pytest.approx(ours[1], rel=1e-5)


def test_acceptance_stops_as_soon_as_a_floor_is_out_of_reach_or_surely_missed() -> None:
    """With the exact early stop, and with the paired test against a better plan."""
    model = tiny_llama()
    items = [Item(((1, 2, n, 7),), ((5, n),), 0, (1,), str(n)) for n in range(64)]
    objective = ObjectiveOnItems(Acceptance(along="right"), items, "acceptance")
    good, bad = (Plan.unified(Removal(map(Drop, gone))) for gone in ((5,), (0, 1, 2, 3, 4)))
    prefix_cache = PrefixCache(model, ExecutionOptions(batch_tokens=64))
    exact = Measurement(lambda: prefix_cache, objective)
    better = exact(good, None, None)
    assert better.score is not None
    assert (exact(bad, None, None).score or 0.0) < better.score
    assert exact(bad, better.score, None).score is None
    paired = Measurement(lambda: prefix_cache, objective, error=0.2)
    stop = Stop(better.score, than=better)
    (_, given_up), *_ = [one for one in paired.together([bad], stop, {}) if not isinstance(one[1], Underway)]
    assert given_up.score is None
    measured = [value for value in given_up.items if value is not None]
    assert 0 < len(measured) < len(items)


def test_the_other_objectives_weigh_every_item_the_same() -> None:
    assert {Accuracy().weight(item(3, 3, tokens=(4, 4))), Margin().weight(item(1, 1))} == {1.0}


def test_points_stay_in_range_a_little_beyond_the_best() -> None:
    assert Perplexity().score(-0.001) == 100.0
    assert Divergence().score(-0.001) == 100.0


@pytest.mark.parametrize(
    ("objective", "best"), [(Accuracy(), 1.0), (Margin(), 1.0), (Perplexity(), 0.0), (Divergence(), 0.0), (Acceptance(), 1.0)]
)
def test_the_best_item_is_worth_all_points(objective: Objective, best: float) -> None:
    assert objective.best_item == best
    assert objective.score(best) == 100.0


@pytest.mark.parametrize("objective", [Accuracy(), Margin()])
def test_items_without_a_choice_are_refused(objective: Accuracy | Margin) -> None:
    items = [item(1, 1, name="a"), item(1, name="b"), item(1, name="c")]
    assert objective.problems(items) == [
        "2 of 3 items have one choice only, such as 'b': use objective = \"kl\"",
    ]
    assert objective.problems(items[:1]) == []


@pytest.mark.parametrize("objective", [Perplexity(), Divergence(), Acceptance()])
def test_what_needs_no_choices_takes_items_without(objective: Objective) -> None:
    assert objective.problems([item(1)]) == []


def test_the_native_units_are_named() -> None:
    units = [objective.unit for objective in (Accuracy, Margin, Perplexity, Divergence, Acceptance)]
    assert units == ["share of items", "probability", "nats a token", "nats a token", "share of tokens"]
