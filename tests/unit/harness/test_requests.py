"""Requests become items: same context, same item; cut from the left; a share of running text as prompt."""

from __future__ import annotations

import pytest

from pdtrim_core import PdtrimError
from pdtrim_core.harness.requests import Request, fitted, items_of, with_prompt


def test_requests_with_the_same_context_are_choices_of_one_item() -> None:
    found = items_of([Request((1, 2), (3,)), Request((4,), (5, 6)), Request((1, 2), (7, 8)), Request((1, 2), (3,))])
    assert [(item.prompts, item.choices) for item in found.items] == [(((1, 2),), ((3,), (7, 8))), (((4,),), ((5, 6),))]
    assert found.places == ((0, 0), (1, 0), (0, 1), (0, 0))


def test_long_texts_behind_the_same_token_stay_apart() -> None:
    texts = [tuple(range(start, start + 200)) for start in (1, 2, 3)]
    found = items_of([Request((0,), text) for text in (*texts, texts[2])])
    assert [item.choices for item in found.items] == [(text,) for text in texts]
    assert found.places == ((0, 0), (1, 0), (2, 0), (2, 0))
    long_context = tuple(range(150))
    assert len(items_of([Request(long_context, text) for text in texts]).items) == 1


@pytest.mark.parametrize(
    ("window", "context"),
    [(9, (1, 2, 3, 4)), (6, (1, 2, 3, 4)), (5, (1, 2, 3, 4)), (4, (2, 3, 4)), (2, (4,))],
)
def test_a_context_is_cut_from_the_left_to_what_the_model_sees(window: int, context: tuple[int, ...]) -> None:
    # The last token is never read, so one more than the window fits.
    assert fitted(Request((1, 2, 3, 4), (5, 6)), window) == (context, (5, 6))


def test_what_cannot_be_scored_is_refused() -> None:
    with pytest.raises(PdtrimError, match="has 2 tokens, more than the 1 that the model sees at once"):
        fitted(Request((1,), (2, 3)), 1)
    with pytest.raises(PdtrimError, match="a choice has no tokens of its own behind its context"):
        fitted(Request((1,), ()), 4)


@pytest.mark.parametrize(("share", "cut"), [(0.0, 1), (0.5, 4), (0.3, 2), (0.99, 7)])
def test_a_share_of_a_window_is_prompt_and_a_token_stays_to_be_scored(share: float, cut: int) -> None:
    whole = tuple(range(8))
    assert with_prompt(Request(whole[:1], whole[1:]), share) == (whole[:cut], whole[cut:])
