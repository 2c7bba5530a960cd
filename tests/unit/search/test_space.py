"""The search space: the two sets, the first removal, and its neighbours."""

from __future__ import annotations

import math
from collections import Counter
from random import Random

import pytest
from hypothesis import assume
from hypothesis import strategies as st

from pdtrim_core.api.cost_model import CostModel
from pdtrim_core.api.search_space import SearchSpace
from pdtrim_core.data.scores import Scores
from pdtrim_core.errors import PdtrimError
from pdtrim_core.plan.costs import BlockSizes, ModelSizes
from pdtrim_core.plan.elements import Drop, Element, Merge, Removal
from pdtrim_core.plan.plan import Plan
from pdtrim_core.search.space import TwoSets, quantile_threshold, search_space, two_sets, without_merges
from tests.reference import reference
from tests.unit.examples import given

COARSE = st.integers(min_value=-4, max_value=4).map(lambda number: number / 4)


@st.composite
def scored(draw: st.DrawFn) -> tuple[Scores, int, float]:
    """Draw scores (many of them tie), a count, and a threshold."""
    size = draw(st.integers(min_value=2, max_value=12))
    block = draw(st.lists(COARSE, min_size=size, max_size=size))
    pair = draw(st.one_of(st.just([]), st.lists(COARSE, min_size=size - 1, max_size=size - 1)))
    count = draw(st.integers(min_value=0, max_value=size - 1))
    return Scores(tuple(block), tuple(pair), similarity=draw(st.booleans())), count, draw(COARSE)


def space_of(drawn: tuple[Scores, int, float]) -> SearchSpace:
    scores, count, threshold = drawn
    sets = two_sets(scores, count, threshold)
    assume(len(sets.drops) + len(sets.pairs) >= count)
    return search_space(scores, count, sets)


def weighted(weights: dict[Element, float], first: Removal) -> SearchSpace:
    return SearchSpace(
        len(first), tuple(weights), tuple(weights.values()), first, Scores((0.0,) * len(weights)), CostModel(len(weights))
    )


# The two sets


@given(scored())
def test_every_block_stands_in_exactly_one_element(drawn: tuple[Scores, int, float]) -> None:
    sets = two_sets(*drawn)
    blocks = [*sets.drops, *(block for pair in sets.pairs for block in pair.blocks)]
    assert sorted(blocks) == list(range(len(drawn[0].block)))


@given(scored())
def test_p_initial_is_the_better_half_and_stays_whole(drawn: tuple[Scores, int, float]) -> None:
    scores, count, threshold = drawn
    sets = two_sets(scores, count, threshold)
    by_score = sorted(range(len(scores.block)), key=lambda block: (-scores.block[block], block))
    assert sets.initial == tuple(by_score[: math.ceil(count / 2)])
    assert set(sets.initial) <= set(sets.drops)


@given(scored())
def test_a_pair_is_taken_unless_a_better_one_or_p_initial_is_in_its_way(drawn: tuple[Scores, int, float]) -> None:
    scores, count, threshold = drawn
    sets = two_sets(scores, count, threshold)
    taken = [pair.blocks[0] for pair in sets.pairs]
    assert taken == sorted(taken, key=lambda first: (-scores.pair[first], first))
    for first, score in enumerate(scores.pair):
        better = [o for o in taken if abs(o - first) == 1 and (-scores.pair[o], o) < (-score, first)]
        in_the_way = bool(better) or bool({first, first + 1} & set(sets.initial))
        assert (first in taken) == (score >= threshold and not in_the_way)


@given(scored())
def test_a_merge_starts_from_the_less_redundant_block(drawn: tuple[Scores, int, float]) -> None:
    scores = drawn[0]
    for pair in two_sets(*drawn).pairs:
        assert (scores.block[pair.keep], pair.keep) <= (scores.block[pair.drop], pair.drop)


@given(scored())
def test_drops_stand_by_falling_score_with_ties_to_the_lower_block(drawn: tuple[Scores, int, float]) -> None:
    scores = drawn[0]
    drops = two_sets(*drawn).drops
    assert list(drops) == sorted(drops, key=lambda block: (-scores.block[block], block))


def test_ties_go_to_the_lower_block_everywhere() -> None:
    scores = Scores((0.5,) * 7, (0.9,) * 6)
    assert two_sets(scores, 3, 0.9) == TwoSets((0, 1), (Merge(2, 3), Merge(4, 5)), (0, 1, 6))


def test_scores_without_pairs_merge_nothing() -> None:
    assert two_sets(Scores((0.1, 0.9, 0.5)), 1, -1.0) == TwoSets((1,), (), (1, 2, 0))


@given(scored())
def test_without_merges_every_block_is_a_drop(drawn: tuple[Scores, int, float]) -> None:
    sets = without_merges(two_sets(*drawn), drawn[0])
    assert (sets.pairs, sets.drops) == ((), tuple(drawn[0].ranking()))


@pytest.mark.parametrize("number", range(21))
def test_the_sets_are_those_of_the_independent_script(number: int) -> None:
    # The script breaks ties of pairs to the higher block; there are none in these figures.
    figures = reference("pdtrim")
    oracle = figures["sets"][number]
    scores = Scores(tuple(figures["r"]), tuple(figures["d_pair"]), similarity=True)
    sets = two_sets(scores, oracle["k"], oracle["d_T"])
    first = {element.blocks for element in sets.first_removal(oracle["k"])}
    assert list(sets.initial) == oracle["P_initial"]
    assert [list(pair.blocks) for pair in sets.pairs] == oracle["D"]
    assert len(sets.drops) == oracle["P_final_size"]
    assert first == {tuple(e) if isinstance(e, list) else (e,) for e in oracle["B_initial"]}


def test_the_independent_figures_are_all_looked_at() -> None:
    assert len(reference("pdtrim")["sets"]) == 21


def test_pair_scores_are_those_of_the_independent_script() -> None:
    from pdtrim_core.data.scores import pair_scores

    figures = reference("pdtrim")
    # The file holds float64, so only the last digit may differ.
    assert pair_scores(figures["r"], figures["cos_pair"]) == pytest.approx(figures["d_pair"], rel=1e-14)


# The threshold


def test_a_quantile_leaves_that_share_of_the_pairs_below() -> None:
    scores = Scores((0.0,) * 11, tuple(number / 10 for number in range(10)))
    assert [quantile_threshold(scores, q) for q in (0.0, 0.25, 0.5, 0.9, 1.0)] == [0.0, 0.3, 0.5, 0.9, 0.9]


@given(scored(), st.integers(min_value=0, max_value=8).map(lambda number: number / 8))
def test_a_quantile_is_a_pair_score_and_rises(drawn: tuple[Scores, int, float], quantile: float) -> None:
    scores = drawn[0]
    assume(scores.pair)
    threshold = quantile_threshold(scores, quantile)
    assert threshold in scores.pair
    assert threshold >= quantile_threshold(scores, quantile / 2)
    assert sum(score < threshold for score in scores.pair) <= math.ceil(quantile * len(scores.pair))


def test_without_pairs_no_pair_reaches_the_quantile() -> None:
    assert quantile_threshold(Scores((1.0, 2.0)), 0.5) == math.inf


# The first removal


@given(scored())
def test_the_first_removal_has_exactly_count_elements(drawn: tuple[Scores, int, float]) -> None:
    space = space_of(drawn)
    assert len(space.first) == drawn[1] == space.first.blocks_removed
    assert all(element in space.elements for element in space.first)


@given(scored())
def test_the_first_removal_is_p_initial_then_the_best_pairs_then_the_best_drops(drawn: tuple[Scores, int, float]) -> None:
    sets = two_sets(*drawn)
    wanted: list[Element] = [Drop(block) for block in sets.initial]
    wanted += [*sets.pairs, *(Drop(block) for block in sets.drops if block not in sets.initial)]
    assume(len(wanted) >= drawn[1])
    assert sets.first_removal(drawn[1]) == Removal(wanted[: drawn[1]])


def test_nothing_is_removed_where_nothing_is_asked() -> None:
    sets = two_sets(Scores((0.5, 0.6), (0.9,)), 0, 0.5)
    assert sets == TwoSets((), (Merge(0, 1),), ())
    assert sets.first_removal(0) == Removal()


def test_all_but_one_block_may_go() -> None:
    scores = Scores((0.1, 0.2, 0.3, 0.4))
    assert search_space(scores, 3, two_sets(scores, 3)).first == Removal([Drop(1), Drop(2), Drop(3)])


def test_too_few_elements_are_refused() -> None:
    scores = Scores((0.5,) * 10, (0.9,) * 9)
    with pytest.raises(PdtrimError) as caught:
        search_space(scores, 9, two_sets(scores, 9, 0.9))
    assert str(caught.value) == (
        "9 blocks to remove, but the two sets hold only 6 drops and 2 merges: raise prune.merge_threshold or ask for fewer blocks"
    )


@pytest.mark.parametrize("count", [-1, 4, 99])
def test_decode_keeps_at_least_one_block(count: int) -> None:
    scores = Scores((0.5,) * 4)
    with pytest.raises(PdtrimError) as caught:
        search_space(scores, count, two_sets(scores, 2))
    assert str(caught.value) == (f"cannot remove {count} of 4 blocks: decode must keep at least one (prune.blocks can be 0 to 3)")


# Weights


@given(scored())
def test_weights_are_never_negative_and_one_an_element(drawn: tuple[Scores, int, float]) -> None:
    space = space_of(drawn)
    assert len(space.weights) == len(space.elements)
    assert min(space.weights) >= 0
    assert space.block_count == len(drawn[0].block)


def test_cosines_weigh_by_themselves_and_a_merge_by_the_mean_of_its_blocks() -> None:
    scores = Scores((0.5, -0.25, 0.75, 0.25), (0.0, 0.0, 0.9), similarity=True)
    space = search_space(scores, 1, TwoSets((0,), (Merge(3, 2),), (0, 1)))
    assert space.elements == (Drop(0), Drop(1), Merge(3, 2))
    assert space.weights == (0.5, 0.0, 0.5)


def test_other_scores_weigh_by_rank() -> None:
    scores = Scores((-300.0, 5000.0, -2.0, -2.0))
    space = search_space(scores, 1, two_sets(scores, 1))
    assert space.weights == (0.25, 1.0, 0.75, 0.5)


@given(scored(), st.floats(min_value=0.5, max_value=4), st.integers(min_value=-3, max_value=3))
def test_the_scale_of_other_scores_does_not_matter(drawn: tuple[Scores, int, float], factor: float, shift: int) -> None:
    block = drawn[0].block
    one, two = Scores(block), Scores(tuple(score * factor + shift for score in block))
    assert search_space(one, drawn[1], two_sets(one, drawn[1])).weights == (
        search_space(two, drawn[1], two_sets(two, drawn[1])).weights
    )


# Neighbours


@given(scored(), st.integers())
def test_a_neighbour_differs_in_exactly_one_element(drawn: tuple[Scores, int, float], seed: int) -> None:
    space, rng = space_of(drawn), Random(seed)
    assume(space.count and len(space.elements) > space.count)
    current = space.first
    for _ in range(5):
        neighbour = space.neighbour(current, rng)
        assert len(neighbour) == space.count
        assert len(set(neighbour) - set(current)) == len(set(current) - set(neighbour)) == 1
        assert set(neighbour) <= set(space.elements)
        assert space.problems(Plan.unified(neighbour)) == []
        current = neighbour


@given(scored(), st.integers())
def test_the_seed_fixes_the_neighbour(drawn: tuple[Scores, int, float], seed: int) -> None:
    space = space_of(drawn)
    assert space.neighbour(space.first, Random(seed)) == space.neighbour(space.first, Random(seed))


def test_a_removal_of_everything_and_one_of_nothing_have_no_neighbours() -> None:
    everything = Removal([Drop(0), Drop(1)])
    space = weighted({Drop(0): 1.0, Drop(1): 1.0}, everything)
    assert space.neighbour(everything, Random(0)) == everything
    assert space.neighbour(Removal(), Random(0)) == Removal()


def test_elements_enter_by_weight() -> None:
    space = weighted({Drop(0): 9.0, Drop(1): 1.0, Drop(2): 3.0, Drop(3): 0.0}, Removal([Drop(0)]))
    rng = Random(0)
    entered = Counter(space.neighbour(space.first, rng).elements[0] for _ in range(4000))
    assert set(entered) == {Drop(1), Drop(2)}
    # The share is 3/4; its standard error over 4000 draws is 0.007, so 0.03 is more than four of them.
    assert entered[Drop(2)] / 4000 == pytest.approx(0.75, abs=0.03)


def test_elements_leave_at_random() -> None:
    space = weighted({Drop(0): 5.0, Drop(1): 0.0, Drop(2): 1.0}, Removal([Drop(0), Drop(1)]))
    rng = Random(0)
    stayed = Counter(space.neighbour(space.first, rng).elements[0] for _ in range(4000))
    # As above: half of 4000 draws, standard error 0.008.
    assert stayed[Drop(0)] / 4000 == pytest.approx(0.5, abs=0.035)


def test_negative_scores_are_never_drawn_while_there_are_others() -> None:
    scores = Scores((0.9, -0.9, -0.1, 0.2), similarity=True)
    space = search_space(scores, 1, two_sets(scores, 1))
    rng = Random(0)
    assert {space.neighbour(space.first, rng) for _ in range(200)} == {Removal([Drop(3)])}


def test_where_all_weights_are_zero_every_element_is_as_likely() -> None:
    scores = Scores((0.9, -0.9, -0.1, -0.5), similarity=True)
    space = search_space(scores, 1, two_sets(scores, 1))
    rng = Random(0)
    entered = Counter(space.neighbour(space.first, rng).elements[0] for _ in range(3000))
    # A third of 3000 draws each, standard error 0.009.
    assert [entered[Drop(block)] / 3000 for block in (1, 2, 3)] == pytest.approx([1 / 3] * 3, abs=0.04)


# What a searcher may ask


def test_a_plan_of_another_count_may_not_be_proposed() -> None:
    scores = Scores((0.5,) * 4)
    space = search_space(scores, 2, two_sets(scores, 2))
    assert space.problems(Plan(decode=Removal([Drop(0), Drop(3)]))) == []
    assert space.problems(Plan(decode=Removal([Drop(0)]))) == ["its decode removes 1 blocks, not 2"]


def test_costs_are_shares_of_the_dense_model() -> None:
    block = BlockSizes(parameters=100, active=100, kv_parameters=20, kv_width=4, attention_width=8)
    scores = Scores((0.5,) * 4)
    sizes = ModelSizes((block,) * 4, parameters=400, head=0, bytes_per_number=2)
    space = search_space(scores, 1, two_sets(scores, 1), CostModel(4, sizes))
    plan = Plan(decode=Removal([Drop(1)]))
    assert (space.cost(plan, "prefill"), space.cost(plan, "decode")) == (1.0, 0.75)


def test_what_a_truncated_prefill_leaves_out_costs_nothing() -> None:
    block = BlockSizes(parameters=100, active=100, kv_parameters=20, kv_width=4, attention_width=0)
    scores = Scores((0.5,) * 4)
    sizes = ModelSizes((block,) * 4, parameters=400, head=0, bytes_per_number=2)
    whole, free = (search_space(scores, 1, two_sets(scores, 1), CostModel(4, sizes, tail)) for tail in (False, True))
    without_last = Plan(decode=Removal([Drop(3)]))
    assert whole.cost(without_last, "prefill") == 1.0
    assert free.cost(without_last, "prefill") == (2 + 0.2) / 4
    assert free.cost(without_last, "decode") == whole.cost(without_last, "decode") == 0.75


def test_without_sizes_a_cost_cannot_be_told() -> None:
    scores = Scores((0.5,) * 4)
    with pytest.raises(PdtrimError) as caught:
        search_space(scores, 1, two_sets(scores, 1)).cost(Plan(), "decode")
    assert str(caught.value) == "this cost model was made without the model's sizes, so costs are unknown"
