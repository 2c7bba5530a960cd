"""How many blocks a budget takes, from a model's published config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core import PluginHost, RecipeError
from pdtrim_core.errors import PdtrimError
from pdtrim_core.host.host import load_plugins
from pdtrim_core.pipeline.budget import Budget, Ceiling, budget_of, removed_blocks, sizes_from_config
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.plan.costs import ModelSizes
from pdtrim_core.plan.plan import Plan
from pdtrim_core.recipe.recipe import Recipe

LLAMA_31_8B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
LLAMA_2_13B: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 40,
    "num_attention_heads": 40,
    "num_key_value_heads": 40,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-05,
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
}
QWEN_25_7B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-06,
    "tie_word_embeddings": False,
}
QWEN_25_14B: dict[str, Any] = {
    "model_type": "qwen2",
    "hidden_size": 5120,
    "intermediate_size": 13824,
    "num_hidden_layers": 48,
    "num_attention_heads": 40,
    "num_key_value_heads": 8,
    "vocab_size": 152064,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
}
CONFIGS = {"Llama-3.1-8B": LLAMA_31_8B, "Llama-2-13B": LLAMA_2_13B, "Qwen2.5-7B": QWEN_25_7B, "Qwen2.5-14B": QWEN_25_14B}


@pytest.fixture(scope="module")
def published(host: PluginHost) -> dict[str, ModelSizes]:
    from transformers import AutoConfig

    return {
        name: sizes_from_config(AutoConfig.for_model(**config, dtype="bfloat16"), host, name) for name, config in CONFIGS.items()
    }


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        # As the checkpoints on the hub state them.
        ("Llama-3.1-8B", 8_030_261_248),
        ("Llama-2-13B", 13_015_864_320),
        ("Qwen2.5-7B", 7_615_616_512),
        ("Qwen2.5-14B", 14_770_033_664),
    ],
)
def test_a_config_alone_tells_the_parameters(published: dict[str, ModelSizes], name: str, parameters: int) -> None:
    assert published[name].parameters == parameters
    assert len(published[name].blocks) == CONFIGS[name]["num_hidden_layers"]


@pytest.mark.parametrize(
    ("name", "count", "percent"),
    [
        ("Llama-3.1-8B", 5, "13.58"),
        ("Llama-3.1-8B", 3, "8.15"),
        ("Llama-2-13B", 10, "24.37"),
        ("Qwen2.5-7B", 5, "15.30"),
        ("Qwen2.5-14B", 10, "18.6"),
    ],
)
def test_removed_blocks_hold_the_share_that_the_table_says(
    published: dict[str, ModelSizes], name: str, count: int, percent: str
) -> None:
    digits = len(percent.partition(".")[2])
    assert f"{100 * published[name].share_of_parameters(count):.{digits}f}" == percent


@pytest.mark.parametrize(
    ("name", "fraction", "count"),
    [
        ("Llama-3.1-8B", 0.136, 5),
        ("Llama-3.1-8B", 0.0815, 3),
        ("Llama-2-13B", 0.244, 10),
        ("Qwen2.5-7B", 0.153, 5),
        ("Qwen2.5-14B", 0.186, 10),
    ],
)
def test_the_papers_percentages_give_the_papers_blocks(
    published: dict[str, ModelSizes], name: str, fraction: float, count: int
) -> None:
    assert published[name].blocks_for(fraction) == count


def test_the_kv_of_a_token_follow_from_the_config(published: dict[str, ModelSizes]) -> None:
    # Llama-3.1-8B: 32 blocks, K and V, 8 heads of 128 numbers.
    sizes = published["Llama-3.1-8B"]
    assert sizes.kv_bytes(Plan()) == 32 * 2 * 8 * 128 * sizes.bytes_per_number


def recipe_of(
    host: PluginHost, prune: dict[str, Any], path: str = "package:none", *, out: Path | None = None, **parts: Any
) -> Recipe:
    model = {"path": path, "placement": "cpu"}
    return Recipe.from_data({"model": model, "prune": prune, **parts}, where="r.toml", out=out, host=host)


def test_blocks_are_taken_as_they_are_given(host: PluginHost, published: dict[str, ModelSizes]) -> None:
    sizes = published["Qwen2.5-7B"]
    assert [removed_blocks(recipe_of(host, {"blocks": count}), sizes, "q") for count in (0, 5, 27)] == [0, 5, 27]
    assert removed_blocks(recipe_of(host, {"fraction": 0.153}), sizes, "q") == 5
    assert removed_blocks(recipe_of(host, {"fraction": 0.0}), sizes, "q") == 0


@pytest.mark.parametrize(("name", "most"), [("Qwen2.5-7B", 0.8262), ("Llama-3.1-8B", 0.8419)])
def test_a_fraction_out_of_reach_is_refused_with_what_can_be_reached(
    host: PluginHost, published: dict[str, ModelSizes], name: str, most: float
) -> None:
    sizes = published[name]
    last, each = len(sizes.blocks) - 1, sizes.share_of_parameters(1)
    reached = sizes.share_of_parameters(last)
    assert reached == pytest.approx(most, abs=1e-4)
    assert removed_blocks(recipe_of(host, {"fraction": most + 0.49 * each}), sizes, "m") == last
    for fraction in (most + 0.51 * each, 0.95):
        with pytest.raises(PdtrimError) as caught:
            removed_blocks(recipe_of(host, {"fraction": fraction}), sizes, "m")
        text = str(caught.value)
        assert text.startswith(f"prune.fraction = {fraction:g} cannot be reached")
        assert f"at most {100 * reached:.2f} % go with {last} of them" in text
        told = float(text.partition("say prune.fraction = ")[2].partition(" ")[0])
        assert removed_blocks(recipe_of(host, {"fraction": told}), sizes, "m") == last


def test_a_pruner_of_channels_may_take_any_fraction(host: PluginHost, published: dict[str, ModelSizes]) -> None:
    recipe = recipe_of(host, {"fraction": 0.95}, pruner="flap")
    assert removed_blocks(recipe, published["Qwen2.5-7B"], "q") == 27
    with pytest.raises(PdtrimError, match="cannot be reached"):
        removed_blocks(recipe_of(host, {"fraction": 0.95}, pruner="shortgpt"), published["Qwen2.5-7B"], "q")


def test_decode_keeps_at_least_one_block(host: PluginHost, published: dict[str, ModelSizes]) -> None:
    with pytest.raises(PdtrimError) as caught:
        removed_blocks(recipe_of(host, {"blocks": 28}), published["Qwen2.5-7B"], "Qwen2.5-7B")
    assert str(caught.value) == (
        "cannot remove 28 of the 28 blocks of Qwen2.5-7B: decode must keep at least one (prune.blocks can be 0 to 27)"
    )


def test_a_budget_needs_no_weights(host: PluginHost, tmp_path: Path) -> None:
    from pdtrim_core.testing import tiny_config

    tiny_config("llama").save_pretrained(tmp_path)
    budget = budget_of(recipe_of(host, {"blocks": 2}, str(tmp_path)), host)
    block = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48 + 2 * 32
    everything = 6 * block + 2 * 260 * 32 + 32
    assert (budget.model, budget.blocks, budget.removed) == (str(tmp_path), 6, 2)
    assert budget.share == pytest.approx(2 * block / everything, rel=1e-12)  # one division and one product


@pytest.mark.parametrize("family", ["llama", "opt"])
@pytest.mark.parametrize("count", [0, -1])
def test_a_config_without_blocks_is_refused(family: str, count: int, host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_config

    config = tiny_config(family)
    config.num_hidden_layers = count
    with pytest.raises(PdtrimError) as caught:
        sizes_from_config(config, host, "tiny")
    assert str(caught.value) == (
        "tiny has no blocks: num_hidden_layers of its config must be 1 or more; take the config.json that belongs to its weights"
    )


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("num_key_value_heads", 0, "integer division or modulo by zero"),
        ("hidden_size", 0, "a size in it is 0, so model.embed_tokens.weight holds no number"),
        ("intermediate_size", 0, "a size in it is 0, so model.layers.0.mlp.gate_proj.weight holds no number"),
        ("intermediate_size", -4, "Trying to create tensor with negative dimension -4: [-4, 32]"),
    ],
)
def test_a_config_with_a_senseless_size_is_refused_in_one_line(key: str, value: int, expected: str, host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_config

    config = tiny_config("llama")
    setattr(config, key, value)
    with pytest.raises(PdtrimError) as caught:
        sizes_from_config(config, host, "tiny")
    assert str(caught.value) == f"cannot make a model of the config of tiny: {expected}"


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_a_budget_is_not_told_of_a_kind_of_model_that_a_run_refuses(kind: str, host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_config

    config = tiny_config("llama")
    config.rope_parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0}
    with pytest.raises(PdtrimError, match=f"tiny uses {kind} rotary embeddings"):
        sizes_from_config(config, host, "tiny")


def test_a_budget_is_told_in_words() -> None:
    assert str(Budget("tiny", 6, 2, 0.256)) == "2 of 6 blocks go, 25.60 % of the parameters of tiny"


def test_a_share_that_no_whole_blocks_hold_is_told_in_words() -> None:
    assert str(Budget("tiny", 6, None, 0.1227)) == "12.27 % of the parameters of tiny are to go"


@pytest.mark.parametrize(
    ("pruner", "prune", "removed"),
    [
        ("llm-pruner", {"fraction": 0.15}, None),
        ("flap", {"fraction": 0.15}, None),
        ("slicegpt", {"fraction": 0.15}, None),
        ("shortgpt", {"fraction": 0.15}, 1),
    ],
)
def test_a_budget_is_counted_as_the_pruner_counts(
    pruner: str, prune: dict[str, Any], removed: int | None, host: PluginHost, tmp_path: Path
) -> None:
    from pdtrim_core.testing import tiny_config

    tiny_config("llama").save_pretrained(tmp_path)
    budget = budget_of(recipe_of(host, prune, str(tmp_path), pruner=pruner), host)
    assert budget.removed == removed
    assert removed is not None or budget.share == pytest.approx(0.15, abs=1e-5)  # to a whole parameter


def test_a_config_without_weights_is_told_and_a_checkpoint_with_them_is_not(host: PluginHost, tmp_path: Path) -> None:
    from pdtrim_core.testing import tiny_config
    from pdtrim_core.testing.models import save_tiny_model

    tiny_config("llama").save_pretrained(tmp_path / "planned")
    planned = budget_of(recipe_of(host, {"blocks": 2}, str(tmp_path / "planned")), host)
    assert (
        planned.remarks[-1] == f"{tmp_path / 'planned'} is a config without weights: its sizes are told, but no run can open it"
    )
    whole = budget_of(recipe_of(host, {"blocks": 2}, str(save_tiny_model(tmp_path / "whole"))), host)
    assert (whole.weights, whole.remarks) == (True, ())
    assert whole.share == planned.share


@pytest.mark.parametrize(
    ("family", "pruner", "prune", "words"),
    [
        ("phi3", {"use": "llm-pruner"}, {"fraction": 0.15}, "cannot lose K/V heads, because this family's projections are fused"),
        ("qwen3-moe", {"use": "torch-pruning"}, {"fraction": 0.1}, 'or are experts: say parts = "attention"'),
        ("phi3", {"use": "flap"}, {"blocks": 1}, "pruner 'flap' removes heads and MLP channels, but the projections of"),
        (
            "llama",
            {"use": "torch-pruning", "parts": "attention"},
            {"fraction": 0.15},
            "at most 9,216 parameters of blocks 0 to 5",
        ),
        ("llama", {"use": "llm-pruner", "parts": "attention"}, {"fraction": 0.01}, "the smallest step removes 9,216 parameters"),
        ("llama", {"use": "llm-pruner", "last_block": 6}, {"blocks": 1}, "leave no block to remove units from"),
        ("llama", {"use": "flap"}, {"fraction": 0.95}, "% were asked for: lower prune.blocks or prune.fraction"),
        ("opt", {"use": "slicegpt"}, {"blocks": 1}, "slicegpt can rotate models of the families"),
        (
            "llama",
            {"use": "sleb", "early_barrier": 3},
            {"blocks": 3},
            "sleb: asked to remove 3 of the 6 blocks, but the barriers",
        ),
        (
            "llama",
            {"use": "shortened-ppl"},
            {"blocks": 1},
            "shortened-ppl: asked to remove 1 of the 6 blocks, but only 0 may be",
        ),
        ("llama", {"use": "laco", "highest": 6}, {"blocks": 1}, "pruner.highest = 6: the model's last block is 5"),
    ],
)
def test_what_a_pruner_cannot_do_is_told_from_the_config_and_by_a_run_before_it_measures(
    family: str, pruner: dict[str, Any], prune: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from pdtrim_core.testing.models import save_tiny_model

    model = save_tiny_model(tmp_path / "model", family)
    recipe = recipe_of(load_plugins(), prune, str(model), pruner=pruner, out=tmp_path / "run")
    with pytest.raises(PdtrimError) as of_check:
        budget_of(recipe, recipe.host)
    assert words in str(of_check.value)
    with pytest.raises(PdtrimError) as of_run:
        run(recipe)
    assert str(of_run.value) == str(of_check.value)
    assert not (tmp_path / "run" / "environment.json").exists()  # no items were drawn


@pytest.mark.parametrize(
    ("part", "prune", "words"),
    [
        (
            {"splitter": {"use": "budget", "prefill_at_most": 0.5}},
            {"blocks": 1},
            "cheapest prefill of this splitter, costs at least",
        ),
        (
            {"splitter": {"use": "pop", "prefill_at_most": 0.01}},
            {"blocks": 2},
            "splitter pop: prefill_at_most = 0.01 is out of reach",
        ),
        ({"splitter": {"use": "kv-tail", "prefill_at_most": 0.01}}, {"blocks": 0}, "splitter kv-tail: prefill_at_most = 0.01 is"),
        (
            {"searcher": {"use": "joint", "prefill_at_most": 0.01}},
            {"blocks": 2},
            "searcher joint: prefill_at_most = 0.01 is out of",
        ),
        (
            {"pruner": "shortgpt", "splitter": {"use": "kv-tail", "prefill_at_most": 0.01}},
            {"blocks": 2},
            "K/V of all blocks that decode runs cost at least 0.",
        ),
    ],
)
def test_a_ceiling_out_of_reach_is_told_from_the_config_and_by_a_run_before_it_measures(
    part: dict[str, Any], prune: dict[str, Any], words: str, tmp_path: Path
) -> None:
    from pdtrim_core.testing.models import save_tiny_model

    model = save_tiny_model(tmp_path / "model", "llama")
    recipe = recipe_of(load_plugins(), prune, str(model), out=tmp_path / "run", **part)
    with pytest.raises(PdtrimError) as of_check:
        budget_of(recipe, recipe.host)
    assert words in str(of_check.value)
    assert "\n" not in str(of_check.value)
    with pytest.raises(PdtrimError) as of_run:
        run(recipe)
    assert str(of_run.value) == str(of_check.value)
    assert not (tmp_path / "run" / "environment.json").exists()  # no items were drawn


def test_a_ceiling_that_a_pruner_of_heads_may_meet_is_no_problem_before_there_is_a_removal(
    host: PluginHost, tmp_path: Path
) -> None:
    from pdtrim_core.testing import tiny_config

    tiny_config("llama").save_pretrained(tmp_path)
    splitter = {"use": "budget", "prefill_at_most": 0.5}
    budget = budget_of(recipe_of(host, {"fraction": 0.15}, str(tmp_path), pruner="flap", splitter=splitter), host)
    assert [ceiling.component for ceiling in budget.ceilings] == ["splitter budget"]


@pytest.mark.parametrize(
    ("share", "unified", "words"),
    [
        (0.8, 1.26, "as much prefill as a unified plan without 1.3 blocks of 6"),
        (1.0, -0.2, "no less prefill than that of the dense model, so it bounds nothing"),
        (0.1, 5.01, "less prefill than that of any unified plan"),
    ],
)
def test_a_ceiling_is_told_beside_the_unified_plan_of_its_cost(share: float, unified: float, words: str) -> None:
    assert str(Ceiling("splitter pop", share, unified, 6)) == f"splitter pop: prefill_at_most = {share:g}: {words}"


def test_both_components_with_a_ceiling_are_told(host: PluginHost, tmp_path: Path) -> None:
    from pdtrim_core.testing import tiny_config

    tiny_config("llama").save_pretrained(tmp_path)
    parts: dict[str, Any] = {
        "searcher": {"use": "joint", "prefill_at_most": 0.75},
        "splitter": {"use": "budget", "prefill_at_most": 0.5},
    }
    found = budget_of(recipe_of(host, {"blocks": 4}, str(tmp_path), **parts), host).ceilings
    assert [(ceiling.component, ceiling.prefill_at_most) for ceiling in found] == [
        ("searcher joint", 0.75),
        ("splitter budget", 0.5),
    ]
    assert 0 < found[0].unified_blocks < found[1].unified_blocks < 6
    replaced = budget_of(recipe_of(host, {"blocks": 4}, str(tmp_path), pruner="shortgpt"), host)
    assert replaced.ceilings == ()


def test_an_architecture_that_no_plugin_knows_is_found_by_its_structure(host: PluginHost) -> None:
    from pdtrim_core.testing import tiny_config

    config = tiny_config("llama")
    assert sizes_from_config(config, PluginHost(), "owner/tiny") == sizes_from_config(config, host, "owner/tiny")


def test_a_budget_is_needed(host: PluginHost) -> None:
    with pytest.raises(RecipeError) as caught:
        recipe_of(host, {})
    assert caught.value.problems == ("prune.blocks: required key is missing (or give prune.fraction)",)
