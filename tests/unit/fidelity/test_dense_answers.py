"""The beginnings of the dense model's answers, as an objective wants them."""

from __future__ import annotations

from pathlib import Path

import pytest

from pdtrim_core.api import Plan
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity import dense_answers as kept
from pdtrim_core.testing import tiny_llama, tiny_model

pytestmark = pytest.mark.numeric

CODE = {"torch": "1"}
PROMPTS = [(5, 6, 7), tuple(range(20)), (9,), (5, 6, 7)]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def test_each_prompt_has_the_greedy_answer_of_the_two_phases() -> None:
    model = tiny_llama()
    found = kept.beginnings(model, PROMPTS, 6, code=CODE)
    reference = TwoPhaseModel(model, Plan())
    assert found == {prompt: tuple(reference.generate(prompt, 6)) for prompt in PROMPTS}


def test_an_answer_ends_with_the_token_that_ends_a_text(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    free = kept.beginnings(model, PROMPTS[:1], 6, code=CODE)[PROMPTS[0]]
    model.model.generation_config.eos_token_id = free[2]
    ended = kept.beginnings(model, PROMPTS[:1], 6, code={"torch": "2"})[PROMPTS[0]]
    assert ended == free[: free.index(free[2]) + 1]


def test_an_answer_is_as_long_as_the_positions_that_are_left() -> None:
    """A model that has learned positions must not be asked for more, and the others' answers are as long as ever."""
    model = tiny_model("opt")
    assert model.positions is not None
    long = tuple(number % 200 for number in range(model.positions - 2))
    found = kept.beginnings(model, [long, (5, 6, 7)], 6, code=CODE)
    assert {prompt: len(answer) for prompt, answer in found.items()} == {long: 2, (5, 6, 7): 6}


def test_prompts_that_fill_all_positions_but_one_have_an_answer_too() -> None:
    model = tiny_model("opt")
    assert model.positions is not None
    longest = tuple(number % 200 for number in range(model.positions - 1))
    assert len(kept.beginnings(model, [longest], 6, code=CODE)[longest]) == 1
