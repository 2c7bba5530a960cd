"""What a run works on: a model, items and a budget that the recipe says, and an environment that goes on must be the same."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from pdtrim_core import PdtrimError, Plan, PluginError
from pdtrim_core.api import BlockModel
from pdtrim_core.data.readings import Reading
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.fidelity.dense_answers import beginnings
from pdtrim_core.pipeline import dense_beginnings
from pdtrim_core.pipeline.run_inputs import prepare, with_training
from tests.unit.pipeline.runs import Begin

READING = Reading(50.0, 0.5, (0.5,), slope=1.0)


def test_inputs_are_what_the_recipe_says(begin: Begin) -> None:
    context = begin(prune={"blocks": 2})
    inputs = prepare(context)
    assert inputs.model.name == "tiny:llama"
    assert (len(inputs.calibration.items), len(inputs.calibration.held_out), inputs.blocks) == (6, 3, 2)
    assert (inputs.environment.weights, inputs.environment.data) == (inputs.model.fingerprint, inputs.calibration.digest)
    assert list(context.events.seconds) == ["open the model", "calibrate"]
    assert context.events.notes == []


def test_a_share_of_the_parameters_is_a_number_of_blocks_too(begin: Begin) -> None:
    inputs = prepare(begin(prune={"fraction": 0.2}))
    assert inputs.blocks == inputs.model.sizes.blocks_for(0.2)


def test_runs_that_share_a_cache_work_on_one_model(begin: Begin) -> None:
    one, other = begin("a"), begin("b", seed=1)
    first, second = prepare(one), prepare(replace(other, cache=one.cache))
    assert first.model is second.model
    assert first.calibration is not second.calibration


def test_a_budget_that_leaves_no_block_is_refused_before_items_are_drawn(begin: Begin) -> None:
    context = begin(prune={"blocks": 6})
    with pytest.raises(PdtrimError) as caught:
        prepare(context)
    assert str(caught.value) == (
        "cannot remove 6 of the 6 blocks of tiny:llama: decode must keep at least one (prune.blocks can be 0 to 5)"
    )
    assert "calibrate" not in context.events.seconds


def test_the_environment_is_written_with_what_was_trained_on(begin: Begin) -> None:
    context = begin()
    environment = with_training(context, prepare(context).environment, "tokens", decides=True)
    assert environment.training == "tokens"
    assert json.loads((context.folder.path / "environment.json").read_text()) == json.loads(json.dumps(vars(environment)))


@pytest.mark.parametrize("changed", ["weights", "data", "training"])
def test_measurements_of_something_else_are_not_gone_on_with(begin: Begin, changed: str) -> None:
    first = begin("a")
    environment = with_training(first, prepare(first).environment, "tokens", decides=True)
    first.folder.note("calibration", Plan(), READING)
    there = first.folder.path.parent / "b"
    there.mkdir()
    (there / "journal.jsonl").write_bytes((first.folder.path / "journal.jsonl").read_bytes())
    (there / "environment.json").write_text(json.dumps({**vars(environment), changed: "other"}))
    again = begin("b")
    with pytest.raises(PdtrimError) as caught:
        with_training(again, prepare(again).environment, "tokens", decides=True)
    assert str(caught.value) == (
        f"{there} holds measurements made with other {changed}: start anew with --fresh, or choose another folder with --out"
    )


def test_other_training_tokens_matter_only_to_a_run_that_measures_what_they_made(begin: Begin) -> None:
    first = begin("a")
    environment = with_training(first, prepare(first).environment, "tokens", decides=True)
    there = first.folder.path.parent / "b"
    there.mkdir()
    first.folder.note("calibration", Plan(), READING)
    (there / "journal.jsonl").write_bytes((first.folder.path / "journal.jsonl").read_bytes())
    (there / "environment.json").write_text(json.dumps(vars(environment)))
    again = begin("b")
    assert with_training(again, prepare(again).environment, "others", decides=False).training == "others"


def test_an_objective_that_wants_them_has_the_dense_models_answers(begin: Begin) -> None:
    context = begin(objective={"use": "kl", "answer_tokens": 5})
    inputs = prepare(context)
    assert "let the dense model answer" in context.events.seconds
    items = inputs.calibration.items
    reference = TwoPhaseModel(inputs.model, Plan())
    assert [item.dense_answer for item in items] == [tuple(reference.generate(item.prompts[0], 5)) for item in items]
    assert not any(item.dense_answer for item in (*inputs.calibration.held_out, *inputs.calibration.fresh))
    assert inputs.environment.data == inputs.calibration.digest == prepare(begin("other")).calibration.digest


@pytest.mark.parametrize("objective", ["accuracy", "margin", "perplexity", {"use": "kl", "along": "right"}])
def test_no_other_objective_lets_the_dense_model_answer(begin: Begin, objective: Any) -> None:
    context = begin(objective=objective)
    assert not any(item.dense_answer for item in prepare(context).calibration.items)
    assert "let the dense model answer" not in context.events.seconds


def test_runs_that_share_a_cache_share_the_answers_of_one_length(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def noted(model: BlockModel, prompts: Iterable[tuple[int, ...]], length: int, **options: Any) -> Any:
        made.append(length)
        return beginnings(model, prompts, length, **options)

    monkeypatch.setattr(dense_beginnings, "beginnings", noted)
    contexts = [begin(str(n), objective={"use": "kl", "answer_tokens": length}) for n, length in enumerate((5, 5, 6))]
    first, second, third = (prepare(replace(context, cache=contexts[0].cache)).calibration for context in contexts)
    assert made == [5, 6]
    assert first.items is second.items
    assert [item.dense_answer for item in first.items] == [item.dense_answer[:5] for item in third.items]


@pytest.mark.parametrize("length", [-1, 1.5, "8", None, True], ids=str)
def test_a_length_of_answers_that_is_none_is_refused_with_the_objective(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, length: Any
) -> None:
    context = begin(objective="kl")
    monkeypatch.setattr(type(context.recipe.objective), "answer_length", length)
    with pytest.raises(PluginError) as caught:
        prepare(context)
    assert str(caught.value).endswith(f"has an answer_length of {length!r}: it must be a number of tokens, 0 for no answers")
