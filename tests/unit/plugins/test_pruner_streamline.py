"""LLM-Streamline: the run is the one that the authors' code finds, and one trained block stands for it."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pdtrim_core.api import Merge, PdtrimError, Plan, Removal
from pdtrim_core.api.score_context import ScoreContext
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.merge_store import KeptMerges, MergeStore
from pdtrim_core.pipeline.prune import prune
from pdtrim_core.pipeline.run_context import open_run_context
from pdtrim_core.pipeline.run_inputs import prepare
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import prune_context, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from pdtrim_plugins.calibrations import Mini
from pdtrim_plugins.distillers import Mse
from pdtrim_plugins.pruners import Streamline
from pdtrim_plugins.pruners.streamline import most_similar, scaled_cosine
from tests.reference import reference, reference_texts
from tests.unit.execution.test_staged_model import some_items, two_phase_sums

if TYPE_CHECKING:
    from pdtrim_core.api import BlockModel, Pruned

SEQUENCES = [[(7 * i + 3 * j) % 256 for j in range(64)] for i in range(4)]


def pruned(model: BlockModel, blocks: int, **options: Any) -> Pruned:
    parameters = blocks * model.sizes.blocks[0].parameters
    return Streamline().prune(prune_context(model, SEQUENCES, blocks=blocks, parameters=parameters, rng=Random(0), **options))


def last_angle(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """PruneMe's distance, arccos / pi of the last token of a text, as every token's."""
    cosine = torch.cosine_similarity(before[:, -1:], after[:, -1:], dim=-1)
    return (cosine.clamp(-1, 1).arccos() / torch.pi).expand(before.shape[:2])


@pytest.fixture(scope="module")
def of_texts(smollm: BlockModel) -> dict[str, list[tuple[float, ...]]]:
    contexts = [ScoreContext(smollm, [text]) for text in reference_texts(smollm.tokenizer)]
    return {
        "streamline": [context.mean_over_windows(scaled_cosine, 6) for context in contexts],
        "pruneme": [context.mean_over_windows(last_angle, 5) for context in contexts],
    }


def means(of_texts: list[tuple[float, ...]]) -> list[float]:
    return [sum(column) / len(of_texts) for column in zip(*of_texts, strict=True)]


@pytest.mark.numeric
@pytest.mark.model
def test_the_run_is_the_one_that_the_authors_code_finds(of_texts: dict[str, list[tuple[float, ...]]], smollm: BlockModel) -> None:
    expected = reference("llm_streamline")
    # The peer drew 39 of the 40 texts; its last run is compared behind the final norm, and it prints four digits.
    theirs = expected["similarities"][:-1]
    gaps = []
    for left_out in range(40):
        ours = means([*of_texts["streamline"][:left_out], *of_texts["streamline"][left_out + 1 :]])[:-1]
        gaps.append(max(abs(a - b) for a, b in zip(ours, theirs, strict=True)))
        assert most_similar(tuple(ours)) == expected["best_start"]
    assert min(gaps) < 1e-4
    found = Streamline().prune(prune_context(smollm, reference_texts(smollm.tokenizer), blocks=5, parameters=0, rng=Random(0)))
    assert found.removal == Removal([Merge(13, 18)])


@pytest.mark.numeric
@pytest.mark.model
def test_windows_of_five_have_the_distances_that_pruneme_gives(of_texts: dict[str, list[tuple[float, ...]]]) -> None:
    expected = reference("pruneme")
    # PruneMe leaves the embeddings out; its last window is compared behind the final norm.
    ours = means(of_texts["pruneme"])[1:-1]
    assert ours == pytest.approx(expected["average_distance"][:-1], abs=1e-4)
    assert ours.index(min(ours)) + 1 == expected["best_start"]


@pytest.mark.parametrize("family", ["llama", "qwen3", "opt"])
def test_blocks_that_do_nothing_go(family: str) -> None:
    found = pruned(tiny_model(family, silent={2, 3, 4}), 2)
    assert found.removal == Removal([Merge(2, 4)])
    assert found.removal.blocks_removed == 2


def test_the_whole_model_may_become_one_block_and_no_more() -> None:
    assert pruned(tiny_llama(), 5).removal == Removal([Merge(0, 5)])
    with pytest.raises(PdtrimError) as caught:
        pruned(tiny_llama(), 6)
    assert str(caught.value) == "pruner 'streamline': at most 5 of 6 blocks can be removed, not 6: remove fewer"


def test_similarities_that_are_no_number_are_passed_over() -> None:
    nan = float("nan")
    assert most_similar((nan, 0.5, 0.7, nan, 0.7)) == 2


def test_states_that_overflow_are_said() -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.blocks[0].get_parameter("mlp.down_proj.weight").mul_(1e38)
    with pytest.raises(PdtrimError) as caught:
        pruned(model, 5)
    assert str(caught.value) == (
        'pruner \'streamline\': no run of 6 blocks has a finite similarity: say dtype = "float32" or "bfloat16" in [model]'
    )


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3"])
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_one_pass_agrees_with_two_phases(family: str, kv: str, tmp_path: Path) -> None:
    model = tiny_model(family)
    store = MergeStore(model, Mse.model_validate({"lr": 1e-2, "epochs": 3, "kv": kv}), SEQUENCES, KeptMerges(tmp_path), label="x")

    def train(merge: Merge) -> tuple[Merge, torch.nn.Module]:
        merge = store.merge_of(merge)
        module, record = store.trained(merge)
        assert record.trained < record.untrained
        return merge, module

    found = pruned(model, 2, train=train)
    (merge,) = found.removal
    assert isinstance(merge, Merge)
    assert (merge.kv, len(merge.blocks)) == (kv, 3)
    items = some_items()[:3]
    for plan in (Plan(decode=found.removal), Plan.unified(found.removal)):
        staged = StagedModel(PrefixCache(model, ExecutionOptions(batch_tokens=64)), plan, found.modules)
        for item, sums, expected in zip(items, staged.loglikelihoods(items), two_phase_sums(staged, items), strict=True):
            assert sums == pytest.approx(expected, abs=1e-4 * max(map(len, item.choices)))


def recipe_data(**distiller: Any) -> dict[str, Any]:
    return {
        "model": {"path": TINY},
        "pruner": {"use": "streamline"},
        "recovery": "none",
        "prune": {"blocks": 2},
        "distiller": {"use": "mse", "tokens": 512, "epochs": 3, "lr": 1e-3, **distiller},
        "calibration": {"use": "mini", "samples": 8, "held_out": 4},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
    }


@pytest.mark.numeric
@pytest.mark.parametrize("kv", ["shadow", "frozen"])
def test_a_run_trains_the_block_and_tells_how_it_came_out(kv: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = tiny_host()
    outcome = pipeline.run(Recipe.from_data(recipe_data(kv=kv), where="x.toml", out=tmp_path / "run", host=host), host)
    (merge,) = outcome.plan.plan.decode
    assert isinstance(merge, Merge)
    assert (len(merge.blocks), merge.kv) == (3, kv)
    (result,) = outcome.merges
    assert result.pair == merge.blocks
    assert result.trained < result.untrained
    assert (result.score, result.kept, result.chosen) == (None, True, True)
    assert outcome.environment.training
    assert any(note.startswith(f"blocks {merge.keep} to {merge.drop} become one; their similarity") for note in outcome.notes)
    assert [path.name for path in (tmp_path / "run" / "merges").iterdir()] == [f"{merge.keep}-{merge.drop}.safetensors"]
    report = host.find("report", "table").component().report(outcome, tmp_path)  # type: ignore[attr-defined]
    assert "+".join(map(str, merge.blocks)) in report


def test_another_distiller_makes_another_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = tiny_host()
    trained = []
    for number, epochs in enumerate((1, 4)):
        recipe = Recipe.from_data(recipe_data(epochs=epochs), where="x.toml", out=tmp_path / str(number), host=host)
        with open_run_context(recipe, host) as context:
            found = prune(context, prepare(context))
        (result,) = found.merge_results(Plan())
        trained.append(result.trained)
        assert not result.chosen
    assert trained[1] < trained[0]


def test_a_block_that_is_worse_than_a_drop_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = tiny_host()
    outcome = pipeline.run(Recipe.from_data(recipe_data(lr=0.3), where="x.toml", out=tmp_path / "run", host=host), host)
    (merge,) = outcome.plan.plan.decode
    assert (
        f"merge {merge} is no nearer to the dense model than keeping only its first or only its last block: train it for longer"
        in outcome.notes
    )


def test_a_block_that_training_did_not_change_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    host = tiny_host()
    data = {**recipe_data(lr=1e-12), "model": {"path": "tiny:llama", "dtype": "bfloat16"}}
    outcome = pipeline.run(Recipe.from_data(data, where="x.toml", out=tmp_path / "run", host=host), host)
    (merge,) = outcome.plan.plan.decode
    assert f"training changed no weight of merge {merge}: train it for longer, or with a larger lr" in outcome.notes


def test_too_few_training_texts_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Mini, "training_texts", lambda _self, _rng: ["A short text."])
    host = tiny_host()
    with pytest.raises(PdtrimError) as caught:
        pipeline.run(Recipe.from_data(recipe_data(), where="x.toml", out=tmp_path / "run", host=host), host)
    assert str(caught.value) == (
        "calibration 'mini' gave 13 training tokens, too few to merge blocks: give it more text, or use another pruner"
    )


def test_without_a_recipe_the_block_that_training_would_start_from_stands_for_the_run() -> None:
    model = tiny_llama()
    ((merge, module),) = pruned(model, 2).modules.items()
    assert isinstance(merge, Merge)
    assert module is model.blocks[merge.blocks[0]]
