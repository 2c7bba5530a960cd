"""What a recipe cannot have where the model's weights stay on the disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pdtrim_core.errors import RecipeError
from pdtrim_core.pipeline.steps import steps_of
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host

if TYPE_CHECKING:
    from pdtrim_core import PluginHost

RECIPE: dict[str, Any] = {
    "model": {"path": "some/model", "placement": "stream"},
    "prune": {"blocks": 1},
    "objective": "margin",
    "recovery": "none",
}
AGAIN = "would read all weights from the disk again and again"
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a source without files": (
        {"model": {"path": "tiny:llama", "placement": "stream"}},
        (
            "model: with model.placement = stream weights stay in safetensors files, and the source 'tiny' has none: convert the "
            "model"
        ),
    ),
    "a pruner": (
        {"pruner": "sleb"},
        f"pruner: with model.placement = stream pruner 'sleb' {AGAIN}: choose another",
    ),
    "a distiller": (
        {"prune": {"blocks": 1, "merges": True}, "distiller": "logit-kl"},
        f"distiller: with model.placement = stream distiller 'logit-kl' {AGAIN}: choose another",
    ),
    "a recovery": (
        {"recovery": ["fold", "distill"], "recovery_data": {"sources": ["calibration"]}},
        f"recovery.1: with model.placement = stream recovery 'distill' {AGAIN}: choose another",
    ),
    "answers": (
        {"objective": "kl"},
        (
            f"objective: with model.placement = stream the dense model's answers, which 'kl' wants, {AGAIN}, once a token: say "
            'along = "right", or choose another'
        ),
    ),
    "written texts": (
        {"recovery": ["fold"]},
        (
            f"recovery_data.sources: with model.placement = stream texts that the dense model writes {AGAIN}, once for each "
            'token: name calibration or a file, or say recovery = "none"'
        ),
    ),
    "formats": (
        {"formats": {"decode": "W8A16"}},
        (
            "formats: with model.placement = stream quantised copies of all layers would have to be in memory: quantise what is "
            "exported"
        ),
    ),
    "a selector": (
        {"kv_selector": "first-only"},
        f"kv_selector: with model.placement = stream 'first-only' {AGAIN}: leave it out",
    ),
    "estimates": (
        {"recovery": ["fold"], "recovery_data": {"sources": ["calibration"]}, "search": {"recovered": True}},
        (
            "search.recovered: with model.placement = stream the hidden states at all depths that it is estimated from take too "
            "much memory: leave it out"
        ),
    ),
    "compiling": (
        {"evaluation": {"compile": True}},
        "evaluation.compile: with model.placement = stream a block is run too seldom for it: leave it out",
    ),
}


@pytest.fixture(scope="module")
def host() -> PluginHost:
    """A host with a model source whose weights are in no files."""
    return tiny_host()


def made(host: PluginHost, **changes: Any) -> Recipe:
    return Recipe.from_data({**RECIPE, **changes}, where="x.toml", out=Path("run"), host=host)


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_read_the_weights_again_and_again_is_refused_in_one_line(name: str, host: PluginHost) -> None:
    changes, problem = REFUSED[name]
    with pytest.raises(RecipeError) as raised:
        made(host, **changes)
    assert raised.value.problems == (problem,) or list(raised.value.problems) == [problem]
    # And only there.
    placement = {**changes.get("model", RECIPE["model"]), "placement": "cpu"}
    made(host, **{**changes, "model": placement})


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"pruner": "shortgpt"},
        {"pruner": "flap"},
        {"pruner": "streamline", "distiller": "mse"},
        {"distiller": "logit-kl"},
        {"objective": {"use": "kl", "along": "right"}},
        {"recovery": ["exact-first-token", "fold", "kv-refit"], "recovery_data": {"sources": ["calibration"]}},
        {"prune": {"blocks": 1, "merges": True}},
    ],
)
def test_what_goes_block_by_block_is_not_refused(changes: dict[str, Any], host: PluginHost) -> None:
    recipe = made(host, **changes)
    assert recipe.streams
    again = Recipe.from_data(recipe.to_data(), where="x.toml", out=Path("run"), host=host)
    assert again.to_data() == recipe.to_data()


def test_fidelity_is_no_step_of_such_a_run(host: PluginHost) -> None:
    assert "fidelity" not in steps_of(made(host))
    assert "fidelity" in steps_of(made(host, model={"path": "some/model"}))
