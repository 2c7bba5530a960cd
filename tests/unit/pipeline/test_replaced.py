"""A pruner that gives a whole other model: its values, costs and files are its own, and no plan is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from pydantic import Field

from pdtrim_core import Drop, Outcome, Plan, PlanError, PluginError, PluginHost, Removal, RunCache, hookimpl
from pdtrim_core.api import LoadedModel, PruneContext, Pruned, Pruner
from pdtrim_core.data.items import Item, Sample, encode
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.execution.two_phase import TwoPhaseModel
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline import pipeline
from pdtrim_core.pipeline.prepare import draw
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.results.run_folder import load_plan, measured_in
from pdtrim_core.testing import ByteTokenizer, tiny_llama
from pdtrim_core.testing.contracts.small_run import TinyModel, tiny_host

NARROW: dict[str, Any] = {"hidden_size": 16, "num_hidden_layers": 3}
"""Another model in every size but its vocabulary."""


class Other(Pruner):
    """Gives a model that has nothing to do with the dense one."""

    name = "other"
    replaces_model = True

    seed: int = Field(7, description="which model")
    fault: str = Field("", description="what is wrong with it")

    def prune(self, context: PruneContext) -> Pruned:
        match self.fault:
            case "none":
                return Pruned(Removal([Drop(0)]))
            case "both":
                return Pruned(Removal([Drop(0)]), replaced=tiny_llama())
            case "tokens":
                return Pruned(replaced=tiny_llama(vocab_size=300))
        model = tiny_llama(seed=self.seed, **NARROW)
        if self.fault == "nan":
            model.blocks[1].get_parameter("mlp.up_proj.weight").data[0, 0] = torch.nan
        return Pruned(replaced=model)


class Liar(Other):
    """Gives another model where it says that it gives none."""

    name = "liar"
    replaces_model: ClassVar[bool] = False


@pytest.fixture(scope="module")
def host() -> PluginHost:
    host = tiny_host()
    host.register(SimpleNamespace(pdtrim_pruners=hookimpl(lambda: [Other, Liar])), Origin("other", "other"))
    return host


def run(host: PluginHost, out: Path, shared: RunCache | None = None, **changes: Any) -> Outcome:
    data = {
        "model": {"path": "tiny:llama"},
        "pruner": "other",
        "recovery": "none",
        "prune": {"blocks": 2},
        "calibration": {"samples": 6, "held_out": 3},
        "objective": "margin",
        "evaluation": {"threads": 1, "fidelity": False},
        **changes,
    }
    return pipeline.run(Recipe.from_data(data, where="other.toml", out=out, host=host), host, shared=shared)


def alone(host: PluginHost, out: Path, monkeypatch: pytest.MonkeyPatch, *, seed: int) -> Outcome:
    """Return the outcome of a run whose dense model is the other one."""
    loaded = LoadedModel(tiny_llama(seed=seed, **NARROW).model, ByteTokenizer(), "the other one")
    monkeypatch.setattr(TinyModel, "open", lambda _source: loaded)
    return run(host, out, pruner="shortgpt", prune={"blocks": 0})


@pytest.mark.numeric
def test_its_row_is_what_a_run_of_that_model_alone_gives(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(host, tmp_path / "a")
    dense, unified = outcome.rows
    assert (dense.name, unified.name) == ("dense", "unified")
    expected = alone(host, tmp_path / "b", monkeypatch, seed=7).rows[0]
    assert dense.calibration.mean != expected.calibration.mean
    assert unified.calibration.mean == pytest.approx(expected.calibration.mean, abs=1e-6)
    assert unified.held_out is not None
    assert expected.held_out is not None
    assert unified.held_out.mean == pytest.approx(expected.held_out.mean, abs=1e-6)


ITEMS: list[Item] = [
    encode(Sample("What is", (" this?", " that?")), ByteTokenizer()),
    encode(Sample("Another", (" one", " two", " three"), 2), ByteTokenizer()),
]


@pytest.mark.numeric
def test_divergences_are_taken_from_the_dense_model() -> None:
    dense, other = tiny_llama(), tiny_llama(seed=7, **NARROW)
    found = StagedModel(PrefixCache(other, dense=dense), Plan()).divergences(ITEMS)
    for item, value in zip(ITEMS, found, strict=True):
        prompt, choice = item.prompt_of(item.answer), item.choices[item.answer]
        ids = torch.tensor([[*prompt, *choice[:-1]]])
        with torch.inference_mode():
            p, q = (model.model(input_ids=ids).logits[0, len(prompt) - 1 :].log_softmax(-1) for model in (dense, other))
        assert value == pytest.approx((p.exp() * (p - q)).sum(-1).mean().item(), rel=1e-4)
        assert value > 1
    assert StagedModel(PrefixCache(dense, dense=tiny_llama()), Plan()).divergences(ITEMS) == pytest.approx([0, 0], abs=1e-5)


@pytest.mark.numeric
def test_a_run_measures_how_far_the_replaced_model_is_from_the_dense_one(host: PluginHost, tmp_path: Path) -> None:
    dense, unified = run(host, tmp_path, objective="kl").rows
    assert dense.calibration.mean == pytest.approx(0, abs=1e-6)
    assert abs(unified.calibration.mean) > 1


def test_costs_are_its_own(host: PluginHost, tmp_path: Path) -> None:
    costs = {cost.name: cost for cost in run(host, tmp_path).costs}
    dense, other = tiny_llama().sizes, tiny_llama(seed=7, **NARROW).sizes
    for stage in ("prefill", "decode"):
        cost = costs[f"parameters of {stage}"]
        assert (cost.dense, cost.plan) == (dense.parameters, other.parameters)
    traffic = costs["decode weight traffic"]
    assert (traffic.dense, traffic.plan) == (dense.decode_bytes(Plan()), other.decode_bytes(Plan()))


def test_nothing_pretends_to_be_a_plan(host: PluginHost, tmp_path: Path) -> None:
    outcome = run(host, tmp_path)
    assert outcome.saved_plan is None
    read = Outcome.from_json((tmp_path / "outcome.json").read_text())
    assert (read.saved_plan, read.rows, read.notes) == (None, outcome.rows, outcome.notes)
    assert not (tmp_path / "plan.json").exists()
    assert "split the stages" not in outcome.seconds
    why = "this run has no plan: its pruner replaced the whole of tiny:llama, and removed no blocks from it"
    with pytest.raises(PlanError, match=f"^{why}$"):
        _ = outcome.plan
    with pytest.raises(PlanError) as caught:
        load_plan(tmp_path)
    assert str(caught.value) == f"{tmp_path}: {why}"
    assert outcome.notes[0] == (
        "pruner 'other' (other) replaced the whole model: it cannot be written as a removal of blocks or channels, so there is "
        "no plan for two stages and no plan.json, and prefill and decode would both run it ('unified')"
    )
    share = 1 - tiny_llama(**NARROW).sizes.parameters / tiny_llama().sizes.parameters
    assert outcome.notes[1].startswith(f"pruner 'other' (other) removed {100 * share:.2f} % of the parameters; ")


def test_an_interrupted_run_goes_on_with_both_models(host: PluginHost, tmp_path: Path) -> None:
    before = run(host, tmp_path)
    assert set(measured_in(tmp_path)) == {"calibration", "held-out", "replaced calibration", "replaced held-out"}
    journal = (tmp_path / "journal.jsonl").read_bytes()
    assert run(host, tmp_path).rows == before.rows
    assert (tmp_path / "journal.jsonl").read_bytes() == journal


@pytest.mark.numeric
def test_runs_that_share_keep_two_replaced_models_apart(host: PluginHost, tmp_path: Path) -> None:
    shared = RunCache()
    for name, pruner in (("a", {"use": "other"}), ("b", {"use": "other", "seed": 8}), ("c", "shortgpt")):
        among = run(host, tmp_path / f"{name} among", shared, pruner=pruner)
        assert among.rows == run(host, tmp_path / f"{name} alone", pruner=pruner).rows
    rows = [json.loads((tmp_path / f"{name} among" / "outcome.json").read_text())["rows"] for name in "abc"]
    assert rows[0][0] == rows[1][0] == rows[2][0]
    assert rows[0][1]["calibration"]["mean"] != rows[1][1]["calibration"]["mean"]


@pytest.mark.parametrize(
    ("pruner", "message"),
    [
        (
            {"use": "other", "fault": "none"},
            "pruner 'other' (other) returned no replaced model, but its class says replaces_model = True",
        ),
        ({"use": "liar"}, "pruner 'liar' (other) returned a replaced model, but its class says replaces_model = False"),
        (
            {"use": "other", "fault": "both"},
            "pruner 'other' (other) returned a replaced model together with a removal: return one of them",
        ),
        ({"use": "other", "fault": "tokens"}, "pruner 'other' (other) returned a model of 300 tokens for one of 260"),
        (
            {"use": "other", "fault": "nan"},
            "pruner 'other' (other) returned a model whose weight model.layers.1.mlp.up_proj.weight holds a NaN or an infinity",
        ),
    ],
)
def test_what_does_not_fit_is_the_plugins_fault(host: PluginHost, tmp_path: Path, pruner: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError) as caught:
        run(host, tmp_path, pruner=pruner)
    assert str(caught.value) == message


@pytest.mark.numeric
def test_a_replaced_model_is_compared_along_the_dense_models_answers(
    host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of both rows the answers are the dense model's, and only the dense model says there what it said."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    options = {"use": "kl", "along": "answers", "answer_tokens": 4}
    dense, unified = run(host, tmp_path / "run", objective=options).rows
    assert (dense.calibration.score, dense.held_out and dense.held_out.score) == (100.0, 100.0)
    recipe = Recipe.read(tmp_path / "run" / "recipe.toml", host=host)
    before, after = tiny_llama(), tiny_llama(seed=7, **NARROW)
    total = tokens = 0.0
    for item in draw(recipe, host, before).items:
        answer = TwoPhaseModel(before, Plan()).generate(item.prompts[0], 4)
        p, q = (TwoPhaseModel(m, Plan()).continuation_logits(item.prompts[0], answer).log_softmax(-1) for m in (before, after))
        total += float((p.exp() * (p - q)).sum())
        tokens += len(answer)
    assert unified.calibration.mean == pytest.approx(total / tokens, rel=1e-4)
