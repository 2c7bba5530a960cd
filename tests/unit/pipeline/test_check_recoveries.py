"""What recoveries cannot do is told from the config alone, and by a run before it measures anything, in the same words."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core import PdtrimError, Recipe, load_plugins
from pdtrim_core.api import BlockLayout, RecoveryFacts
from pdtrim_core.pipeline.budget import budget_of
from pdtrim_core.pipeline.check_recoveries import fitting_recoveries
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.testing.models import save_tiny_model

if TYPE_CHECKING:
    from pathlib import Path

FACTS = RecoveryFacts("the-model", "llama", BlockLayout("model.layers", ("n", "k", "v"), mlp=("up", "down")))


def recipe_of(model: str, **keys: Any) -> Recipe:
    data = {"model": model, "prune": {"blocks": 1}, "calibration": {"use": "mini", "samples": 4, "held_out": 2}, **keys}
    return Recipe.from_data(data, where="mine.toml", host=load_plugins())


def told(recovery: Any, positions: int | None = None, **recovery_data: Any) -> list[str]:
    """The problems that are found, one by one."""
    try:
        fitting_recoveries(recipe_of("package:none", recovery=recovery, recovery_data=recovery_data), FACTS, positions)
    except PdtrimError as error:
        return str(error).split("; also, ")
    return []


@pytest.mark.parametrize(
    ("family", "recovery", "words"),
    [
        ("phi3", "kv-refit", "recovery 'kv-refit': {model} (phi3): it computes K and V together with Q"),
        ("gpt-neox", "kv-refit", "recovery 'kv-refit': {model} (gpt_neox): it computes K and V together with Q"),
        (
            "phi3",
            ["kv-refit", "fold"],
            "so prefill cannot have them alone; also, recovery 'fold': {model} (phi3): the projections",
        ),
        ("mixtral", "fold", "recovery 'fold': {model} (mixtral): the projections of its MLP are fused or belong to experts"),
        ("qwen3-moe", ["fold", "fold"], "recovery 'fold': {model} (qwen3_moe): the projections of its MLP are fused or belong"),
    ],
)
def test_a_family_that_cannot_be_recovered_so_is_told_by_name(family: str, recovery: Any, words: str, tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "model", family))
    recipe = Recipe.from_data(
        {"model": model, "prune": {"blocks": 1}, "recovery": recovery}, where="mine.toml", out=tmp_path / "run"
    )
    with pytest.raises(PdtrimError) as of_check:
        budget_of(recipe, recipe.host)
    assert words.format(model=model) in str(of_check.value)
    assert str(of_check.value).count("fused or belong") <= 1
    assert "\n" not in str(of_check.value)
    with pytest.raises(PdtrimError) as of_run:
        run(recipe)
    assert str(of_run.value) == str(of_check.value)
    assert not (tmp_path / "run" / "environment.json").exists()  # no items were drawn


def test_texts_that_are_longer_than_the_positions_are_told(tmp_path: Path) -> None:
    model = str(save_tiny_model(tmp_path / "model", "opt", max_position_embeddings=100))
    recipe = recipe_of(model, recovery="fold")
    with pytest.raises(PdtrimError) as caught:
        budget_of(recipe, recipe.host)
    assert str(caught.value) == (
        f"recovery_data: texts have 128 tokens (prompt_tokens + answer_tokens), and {model} has learned 100 positions: make them "
        "shorter"
    )
    shorter = recipe_of(model, recovery="fold", recovery_data={"answer_tokens": 36})
    assert budget_of(shorter, shorter.host).removed == 1


def test_rotary_positions_bound_no_text(tmp_path: Path) -> None:
    recipe = recipe_of(str(save_tiny_model(tmp_path / "model", "llama", max_position_embeddings=100)), recovery="fold")
    assert budget_of(recipe, recipe.host).removed == 1


@pytest.mark.parametrize("recovery", ["none", []])
def test_nothing_is_told_of_texts_that_no_recovery_wants(recovery: Any) -> None:
    assert told(recovery, 1, sources=["./no-such-file.txt"]) == []


def test_a_file_that_is_not_there_is_told_and_so_is_a_folder(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.jsonl")
    assert told("fold", sources=["generated", missing, str(tmp_path), "calibration"]) == [
        f"recovery_data.sources: {missing} is not there: name a .jsonl or text file, or say generated, or calibration",
        f"recovery_data.sources: {tmp_path} is a folder: name a .jsonl or text file, or say generated, or calibration",
    ]


def test_a_file_that_is_certainly_too_short_is_told(tmp_path: Path) -> None:
    file = tmp_path / "own.txt"
    file.write_text("x" * 1000)
    # 1,280 tokens are 10 texts, of each of which 127 tokens come from the file.
    (problem,) = told({"use": "fold", "tokens": 1280}, sources=[str(file)])
    assert problem == (
        f"recovery_data.sources: {file} has 1,000 bytes, which are not 10 texts of 128 tokens: give it more text, or let "
        "recoveries take fewer tokens"
    )
    assert told({"use": "fold", "tokens": 1280}, sources=[str(file), "generated"]) == []
    file.write_text("x" * 1270)
    assert told({"use": "fold", "tokens": 1280}, sources=[str(file)]) == []
    assert told([{"use": "fold", "tokens": 1280}, {"use": "kv-refit", "tokens": 1281}], sources=[str(file)]) != []


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    missing = str(tmp_path / "none.txt")
    found = told("fold", 64, sources=[missing])
    assert [problem.partition(":")[0] for problem in found] == ["recovery_data", "recovery_data.sources"]


def test_a_file_is_enough_where_it_is_enough(tmp_path: Path) -> None:
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": "All of it measures nothing. " * 20}) + "\n" for _ in range(80)))
    assert told("fold", sources=[str(file)]) == []


def test_what_is_optional_is_left_out_for_a_model_that_it_can_do_nothing_for() -> None:
    fused = RecoveryFacts("the-model", "phi3", BlockLayout("model.layers", ()))
    fold, refit = ({"use": use, "optional": True} for use in ("fold", "kv-refit"))
    fitting = fitting_recoveries(recipe_of("package:none", recovery=["exact-first-token", refit, fold]), fused, None)
    assert [one.name for one in fitting.recoveries] == ["exact-first-token"]
    assert [line.partition(":")[0] for line in fitting.left_out] == ["recovery 'kv-refit'", "recovery 'fold'"]
    with pytest.raises(PdtrimError, match="recovery 'fold': the-model"):
        fitting_recoveries(recipe_of("package:none", recovery=[refit, "fold"]), fused, None)


def test_where_all_is_optional_texts_that_do_not_fit_the_model_end_recovery_and_not_the_run() -> None:
    recipe = recipe_of("package:none", recovery=[{"use": "fold", "optional": True}])
    fitting = fitting_recoveries(recipe, FACTS, 100)
    assert fitting.recoveries == ()
    assert "has learned 100 positions" in fitting.left_out[0]
    assert fitting.left_out[0].endswith("no recovery is done")


def test_a_recipe_that_names_none_has_recoveries_that_any_model_may_refuse() -> None:
    recipe = recipe_of("package:none")
    assert recipe.recoveries
    assert all(recovery.optional for recovery in recipe.recoveries)
    assert Recipe.from_data(recipe.to_data(), where="again", host=recipe.host).recoveries == recipe.recoveries
    assert recipe_of("package:none", recovery="none").recoveries == ()
    assert recipe_of("package:none", pruner="slicegpt").recoveries == ()
