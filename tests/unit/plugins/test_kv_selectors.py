"""The built-in selectors of K/V: which blocks they choose, and what of a prompt these read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pdtrim_core.api import (
    BlockModel,
    Drop,
    Edges,
    FirstOnly,
    Plan,
    Removal,
    Selection,
    SelectionContext,
    SelectionFacts,
)
from pdtrim_core.testing import selection_context, tiny_llama
from pdtrim_plugins.kv_selectors.paper import Paper
from pdtrim_plugins.kv_selectors.plain import All, FirstOnlySelector

LOST = Plan(decode=Removal([Drop(1), Drop(4)]))


@pytest.fixture(scope="module")
def model() -> BlockModel:
    return tiny_llama()


def context(model: BlockModel, plan: Plan = LOST, tokens: Sequence[int] = (240, 240), **more: Any) -> SelectionContext:
    return selection_context(model, plan, [[number % 256 for number in range(count)] for count in tokens], **more)


class Told(SelectionContext):
    """A context whose attention is made up: 0.1 more for each block, and 0.02 for each text."""

    def masses(self, selections: Sequence[Selection], *, texts: Sequence[int] | None = None) -> list[Tensor]:
        """Return that for two heads, which lie around it."""
        numbers = range(len(self.prompt_tokens)) if texts is None else texts
        around = torch.tensor([-0.05, 0.05])
        return [torch.stack([0.1 * one.block + 0.02 * number + around for number in numbers]) for one in selections]


def told(model: BlockModel, tokens: Sequence[int] = (240, 240), note: Callable[[str], None] = print) -> Told:
    return Told(**{**vars(context(model, tokens=tokens)), "note": note})


def test_blocks_are_selected_from_gamma_on_by_the_mean_over_heads_and_texts(model: BlockModel) -> None:
    # Decode has the blocks 0, 2, 3 and 5, with means of 0.01, 0.21, 0.31 and 0.51.
    for gamma, chosen in ((0.0, [0, 2, 3, 5]), (0.2, [2, 3, 5]), (0.22, [3, 5]), (0.5, [5]), (0.52, [])):
        assert [one.block for one in Paper(gamma=gamma).select(told(model))] == chosen


def test_half_of_what_is_kept_is_at_each_end(model: BlockModel) -> None:
    assert Paper(gamma=0.5).select(told(model)) == [Edges(5, 0.15, 0.15)]
    assert Paper(gamma=0.5, keep=0.5).select(told(model)) == [Edges(5, 0.25, 0.25)]
    (removed,) = Paper(gamma=0.5, share="removed").select(told(model))
    assert isinstance(removed, Edges)
    assert removed.kept == pytest.approx(0.7)


def test_only_texts_of_which_something_is_left_out_count(model: BlockModel) -> None:
    # The first prompt has 19 tokens, all of which are read; the second 119. Of the last block its mass is 0.52, the other's 0.5.
    assert [one.block for one in Paper(gamma=0.515).select(told(model, (40, 240)))] == [5]
    assert Paper(gamma=0.515).select(told(model, (240, 240))) == []
    assert Paper(gamma=0.505, texts=1).select(told(model, (240, 240))) == []


def test_the_note_says_where_the_blocks_lie(model: BlockModel) -> None:
    notes: list[str] = []
    Paper().select(told(model, note=notes.append))
    assert notes == [
        "attention on the ends of 2 prompts is 0.01 to 0.51 by block of decode; from 0.75 on a block reads only those"
    ]


def test_all_blocks_of_a_real_context_are_selected_with_gamma_0_and_none_beyond_what_attention_can_be(model: BlockModel) -> None:
    given = context(model)
    assert [one.block for one in Paper(gamma=0.0).select(given)] == [0, 2, 3, 5]
    means = [float(mass.mean()) for mass in given.masses([Edges(block, 0.15, 0.15) for block in given.blocks])]
    chosen = [block for block, mean in zip(given.blocks, means, strict=True) if mean >= sorted(means)[2]]
    assert [one.block for one in Paper(gamma=sorted(means)[2]).select(given)] == chosen
    assert len(chosen) == 2
    assert Paper(gamma=1.0).select(given) == []


@pytest.mark.parametrize(
    ("tokens", "options", "short"),
    [
        ((32, 20), {}, True),
        ((33, 20), {}, False),
        ((33,), {"keep": 0.99}, True),
        ((400,), {"keep": 0.9}, False),
        ((400,), {"keep": 0.9, "share": "removed"}, False),
        ((), {}, True),
        ((20,), {"keep": 1.0}, False),
    ],
)
def test_prompts_of_which_nothing_is_left_out_are_too_short(
    tokens: tuple[int, ...], options: dict[str, Any], short: bool
) -> None:
    problems = Paper(**options).problems(SelectionFacts("tiny", "mini", tokens))
    assert bool(problems) == short
    for problem in problems:
        assert f"the prompts of calibration 'mini' have {max(tokens, default=0)} tokens at most" in problem
        assert 'calibration.use = "text" with a larger calibration.words' in problem


def test_who_keeps_everything_selects_nothing(model: BlockModel) -> None:
    assert Paper(keep=1.0, gamma=0.0).select(context(model)) == ()


@pytest.mark.parametrize(("upper", "blocks"), [(0.25, [5]), (0.5, [3, 5]), (0.01, [5]), (1.0, [0, 2, 3, 5])])
def test_the_uppermost_blocks_of_decode_read_the_first_token(model: BlockModel, upper: float, blocks: list[int]) -> None:
    assert FirstOnlySelector(upper=upper).select(context(model)) == [FirstOnly(block) for block in blocks]


def test_all_selects_nothing(model: BlockModel) -> None:
    assert All().select(context(model)) == ()
    assert not All.selects
