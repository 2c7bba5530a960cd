from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import hookimpl
from pdtrim_core.api.plan_kinds import Pruner
from pdtrim_core.api.pruned import Pruned
from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import Origin, PluginHost
from pdtrim_core.pipeline.budget import budget_of
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.plan.elements import Part, Removal, Shrink
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.models import save_tiny_model

pytest.importorskip("compressed_tensors", reason="the quantizer rtn takes compressed-tensors, which is not installed")


def recipe_of(model: str, out: Path, formats: dict[str, Any], host: PluginHost | None = None, **more: Any) -> Recipe:
    data = {"model": model, "prune": {"blocks": 1}, "formats": formats, **more}
    return Recipe.from_data(data, where="mine.toml", out=out, host=host)


@pytest.mark.parametrize(
    ("family", "formats", "words"),
    [
        (
            "llama",
            {"decode": "W4A16"},
            "do not divide the 32 inputs of self_attn.q_proj of {model}, nor those of 6 more layers: set formats.group_size = 16",
        ),
        ("qwen2", {"prefill": "W8A16", "group_size": 32}, "groups of 32 weights do not divide the 48 inputs of mlp.down_proj"),
        (
            "mixtral",
            {"decode": "W8A8"},
            "formats: {model} (mixtral) has weights in its blocks that are in no linear layer, such as",
        ),
        ("qwen3-moe", {"prefill": "FP8_DYNAMIC"}, "(qwen3_moe) has weights in its blocks that are in no linear layer"),
        ("phi3", {"decode": "W8A8"}, "formats: {model} (phi3) computes K and V together with Q"),
        ("gpt-neox", {"decode": "W8A8", "prefill": "FP8_DYNAMIC"}, "give both stages the same format"),
    ],
)
def test_layers_that_cannot_have_a_format_are_told_before_a_run(
    family: str, formats: dict[str, Any], words: str, tmp_path: Path
) -> None:
    model = str(save_tiny_model(tmp_path / "model", family))
    recipe = recipe_of(model, tmp_path / "run", formats)
    with pytest.raises(PdtrimError) as of_check:
        budget_of(recipe, recipe.host)
    assert words.format(model=model) in str(of_check.value)
    assert "\n" not in str(of_check.value)
    with pytest.raises(PdtrimError) as of_run:
        run(recipe)
    assert str(of_run.value) == str(of_check.value)
    assert not (tmp_path / "run" / "environment.json").exists()  # no items were drawn


@pytest.mark.parametrize(
    ("family", "formats"),
    [
        ("llama", {"decode": "W4A16", "group_size": 16}),
        ("llama", {"decode": "W8A8", "prefill": "FP8_DYNAMIC"}),  # they have no groups
        ("phi3", {"decode": "W8A8", "prefill": "W8A8"}),
        ("mixtral", {"decode": "none"}),
    ],
)
def test_nothing_is_told_of_layers_that_can(family: str, formats: dict[str, Any], tmp_path: Path) -> None:
    recipe = recipe_of(str(save_tiny_model(tmp_path / "model", family)), tmp_path / "run", formats)
    assert budget_of(recipe, recipe.host).removed == 1


def test_what_is_not_installed_is_told_with_the_way_to_install_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_plugins.quantizers.rtn.find_spec", lambda name: None)
    recipe = recipe_of(str(save_tiny_model(tmp_path / "model", "llama")), tmp_path / "run", {"decode": "W8A8"})
    with pytest.raises(PdtrimError, match=r"not installed: pip install 'pdtrim-core\[formats\]'"):
        budget_of(recipe, recipe.host)


class Odd(Pruner):
    """Takes channels away, one more in one block, so that no group divides what is left there."""

    name = "odd"

    @property
    def narrows(self) -> frozenset[Part]:
        return frozenset({"mlp"})

    def prune(self, context: Any) -> Pruned:
        return Pruned(Removal([Shrink(2, "mlp", (1,))]))


def test_channels_that_pruning_took_out_of_a_group_are_told_before_anything_is_exported(tmp_path: Path) -> None:
    host = tiny_host()
    host.register(type("Plugin", (), {"pdtrim_pruners": hookimpl(lambda self: [Odd])})(), Origin("odd", "0"))
    more = {"pruner": "odd", "calibration": {"use": "mini", "samples": 2, "held_out": 0}, "exporter": ["plan", "checkpoints"]}
    recipe = recipe_of("tiny:llama", tmp_path / "run", {"decode": "W4A16", "group_size": 16}, host, **more)
    with pytest.raises(PdtrimError) as caught:
        run(recipe, host)
    assert str(caught.value) == (
        "formats: groups of 16 weights do not divide the 47 inputs of mlp.down_proj of block 2 in decode of tiny:llama: choose "
        "W8A8 or FP8_DYNAMIC, which have no groups"
    )
    assert not (tmp_path / "run" / "decode").exists()


def test_a_model_that_is_quantised_already_is_refused(tmp_path: Path) -> None:
    import json

    folder = save_tiny_model(tmp_path / "model", "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "compressed-tensors"}}))
    recipe = recipe_of(str(folder), tmp_path / "run", {"decode": "W8A8"})
    for call in (lambda: budget_of(recipe, recipe.host), lambda: run(recipe)):
        with pytest.raises(PdtrimError, match=r"has quantised weights.* quantise the result"):
            call()
