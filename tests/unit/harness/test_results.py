"""What the harness returns, in our form."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.harness.results import answers_of
from pdtrim_core.results.task_results import TaskResult, read_result, write_result


def sample(resps: list[list[Any]], target: Any, **doc: Any) -> dict[str, Any]:
    return {"doc_id": 0, "doc": doc, "filter": "none", "metrics": ["acc"], "acc": 1.0, "resps": resps, "target": target}


@pytest.mark.parametrize("target", [1, "1"])
def test_the_log_probability_of_every_choice_is_kept_with_the_right_one(target: object) -> None:
    (answer,) = answers_of({"piqa": [sample([[(-3.5, False)], [(-1.25, True)], [(-9.0, False)]], target, id="piqa/7")]})
    assert (answer.item, answer.answer, answer.logprobs, answer.target) == ("piqa/7", 1, (-3.5, -1.25, -9.0), 1)
    assert answer.values == {"acc": 1.0}


@pytest.mark.parametrize("target", [" yes", 3, -1, None, "x"])
def test_a_target_that_is_no_choice_is_none(target: object) -> None:
    (answer,) = answers_of({"t": [sample([[(-3.5, False)], [(-1.25, True)]], target)]})
    assert (answer.item, answer.target) == ("t/0", None)


def test_a_text_that_was_made_has_no_choices() -> None:
    (answer,) = answers_of({"t": [sample([["some text"]], "some text")]})
    assert (answer.answer, answer.logprobs, answer.target) == ("some text", (), None)


def test_a_text_can_be_kept_in_a_file_whatever_is_in_it(tmp_path: Path) -> None:
    answers = answers_of({"t": [sample([["a\0b\n"]], "b")]})
    assert answers[0].answer == "a\ufffdb\n"
    result = TaskResult("t", "staged", {}, "acc", answers, {}, {}, 1.0)
    assert read_result(write_result(tmp_path, result)).answers == answers


def test_the_likelihood_of_one_text_has_no_right_choice() -> None:
    (answer,) = answers_of({"t": [sample([[(-3.5, False)]], 0)]})
    assert (answer.answer, answer.logprobs, answer.target) == (0, (-3.5,), None)
