"""What a recovery would make of a candidate: as a real one makes it where the hidden states are the dense model's, and shared."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from torch import nn

from pdtrim_core import Outcome, PluginError, PluginHost, RecipeError, load_run
from pdtrim_core.api import Drop, Item, KvOnly, LayerOf, LayerRecovery, Merge, Plan, Removal, Shrink
from pdtrim_core.execution.dense_states import DenseStates
from pdtrim_core.execution.prefix_cache import PrefixCache
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.block_model import BlockModel
from pdtrim_core.pipeline import estimated_recovery, pipeline
from pdtrim_core.pipeline.estimated_recovery import EstimatedRecovery
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing import recovery_context, tiny_llama, tiny_model
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_plugins.recoveries import Fold, KvRefit
from tests.unit.pipeline.test_recover import FOLD, RECIPE, REFIT

LABELS = ("fold", "kv-refit")
GAP = Plan.unified(Removal([Drop(2), Drop(3)]))
TAIL = Plan(Removal([KvOnly(4), KvOnly(5)]), Removal([Drop(1)]))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def texts(count: int = 24, seed: int = 0) -> list[list[int]]:
    rng = Random(seed)
    return [rng.choices(range(256), k=24) for _ in range(count)]


def items(count: int = 24, seed: int = 0) -> list[Item]:
    return [Item((tuple(text[:12]),), (tuple(text[12:]),), 0, (1,), str(n)) for n, text in enumerate(texts(count, seed))]


def estimate_of(model: BlockModel, *recoveries: LayerRecovery) -> EstimatedRecovery:
    chosen = recoveries or (Fold(), KvRefit())
    return EstimatedRecovery(chosen, [one.name for one in chosen], DenseStates(model, items()), "digest")


def weights_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return dict(module.named_parameters())


@pytest.mark.parametrize("fit", ["map", "projection"])
def test_where_the_stage_has_the_dense_hidden_states_an_estimate_is_the_recovery_itself(fit: Any) -> None:
    model, fold = tiny_llama(), Fold(fit=fit)
    context = recovery_context(model, GAP, texts(), check=texts(4, seed=1))
    fold.recover(context)
    found = estimate_of(model, fold).modules(GAP)
    assert set(found) == {LayerOf(GAP, "prefill", 1), LayerOf(GAP, "decode", 1)}
    expected = weights_of(context.pair.modules[LayerOf(GAP, "decode", 1)])
    for name, weight in weights_of(found[LayerOf(GAP, "decode", 1)]).items():
        torch.testing.assert_close(weight, expected[name], rtol=1e-4, atol=1e-5)
    assert not torch.equal(expected["mlp.down_proj.weight"], model.blocks[1].get_parameter("mlp.down_proj.weight"))


def test_a_candidate_with_its_estimate_is_nearer_to_the_dense_model_on_the_same_texts() -> None:
    model = tiny_llama()
    cache, estimate = PrefixCache(model), estimate_of(model)
    for plan in (GAP, TAIL):
        before, after = (StagedModel(cache, plan, modules).divergences(items()) for modules in ({}, estimate.modules(plan)))
        assert sum(after) < sum(before)


def test_a_prefill_that_ends_early_is_estimated_at_the_depth_at_which_it_ends() -> None:
    model = tiny_llama()
    found = estimate_of(model).modules(TAIL)
    assert {(key.stage, key.block) for key in found} == {("prefill", 4), ("prefill", 5), ("decode", 0)}
    # Block 4 has in front of it what it has in the dense model, so its K/V are fitted to be what they were.
    for name in ("k_proj", "v_proj"):
        of_4, of_5 = (found[LayerOf(TAIL, "prefill", block)].get_parameter(f"self_attn.{name}.weight") for block in (4, 5))
        torch.testing.assert_close(of_4, model.blocks[4].get_parameter(f"self_attn.{name}.weight"), rtol=1e-4, atol=1e-5)
        assert not torch.allclose(of_5, model.blocks[5].get_parameter(f"self_attn.{name}.weight"), atol=1e-3)


def test_plans_with_the_same_gap_share_what_is_in_front_of_it() -> None:
    estimate = estimate_of(tiny_llama())
    plans = [Plan.unified(Removal([Drop(2)])), Plan.unified(Removal([Drop(2), Drop(4)])), Plan(decode=Removal([Drop(2)]))]
    assert len({id(estimate.modules(plan)[LayerOf(plan, "decode", 1)]) for plan in plans}) == 1
    other = Plan.unified(Removal([Drop(2), Drop(3)]))
    assert estimate.modules(other)[LayerOf(other, "decode", 1)] is not estimate.modules(plans[0])[LayerOf(plans[0], "decode", 1)]


def test_what_takes_too_many_bytes_is_made_again_and_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(estimated_recovery, "KEPT_BYTES", 1)
    estimate = estimate_of(tiny_llama())
    plans = [Plan.unified(Removal([Drop(block)])) for block in (2, 4)]
    first, _, again = (estimate.modules(plan) for plan in (*plans, plans[0]))
    name = LayerOf(plans[0], "decode", 1)
    assert first[name] is not again[name]
    assert all(torch.equal(*pair) for pair in zip(first[name].parameters(), again[name].parameters(), strict=True))


@pytest.mark.parametrize(
    "decode",
    [
        Removal([Merge(keep=1, drop=2), Drop(3)]),
        Removal([Shrink(1, "mlp", (0, 1)), Drop(2)]),
        Removal([Drop(0)]),
        Removal(),
    ],
    ids=["merged", "shrunk", "no block in front", "dense"],
)
def test_layers_of_which_the_dense_model_tells_nothing_stay_as_they_are(decode: Removal) -> None:
    assert estimate_of(tiny_llama()).modules(Plan.unified(decode)) == {}


def test_a_family_whose_projection_no_map_folds_into_has_no_estimate() -> None:
    plan = Plan.unified(Removal([Drop(2)]))
    assert estimate_of(tiny_model("gemma3"), Fold()).modules(plan) == {}


class Broken(LayerRecovery):
    """Fails where a test says."""

    name = "broken"
    where: str

    def wants(self, stage: Any, layer: Any, gone: range) -> bool:
        return bool(layer.block == 1 if self.where == "weights" else [].pop())

    def weights(self, layer: Any) -> dict[str, torch.Tensor]:
        return {"mlp.down_proj.weight": [].pop()}


@pytest.mark.parametrize("where", ["wants", "weights"])
def test_a_recovery_that_fails_is_named(where: str) -> None:
    with pytest.raises(PluginError, match="broken failed: IndexError"):
        estimate_of(tiny_llama(), Broken(where=where)).modules(GAP)


def test_a_recovery_that_breaks_its_contract_is_refused() -> None:
    class Breaks(LayerRecovery):
        """Changes what makes K."""

        name = "breaks"

        def weights(self, layer: Any) -> dict[str, torch.Tensor]:
            name = "self_attn.k_proj.weight"
            return {name: 2 * layer.module.get_parameter(name).detach()}

    with pytest.raises(PluginError, match=r"breaks changed the weight 0\.self_attn\.k_proj\.weight of prefill"):
        estimate_of(tiny_llama(), Breaks()).modules(GAP)


def ran(out: Path, host: PluginHost, *, fresh: bool = False, **changes: Any) -> Outcome:
    data = {**RECIPE, "recovery": [REFIT, FOLD], "search": {"recovered": True, "recovered_tokens": 400}, **changes}
    return pipeline.run(Recipe.from_data(data, where="x.toml", out=out, host=host), host, fresh=fresh)


@pytest.mark.parametrize("objective", ["kl", "acceptance"])
def test_a_run_searches_among_recovered_candidates_and_ends_with_a_real_recovery(objective: str, tmp_path: Path) -> None:
    host = tiny_host()
    outcome = ran(tmp_path / "run", host, objective=objective)
    assert outcome.recovery
    plain = ran(tmp_path / "plain", host, search={"recovered": False}, objective=objective)
    with_scores, without = ({step.decode: step.score for step in one.search} for one in (outcome, plain))
    together = [decode for decode in with_scores if with_scores[decode] is not None and without.get(decode) is not None]
    assert together
    assert any(with_scores[decode] != without[decode] for decode in together)
    # What the table says of the pair is of its real weights, and of plans without some, of the plans as they are.
    assert load_run(tmp_path / "run", host).plan_digest("staged") != load_run(tmp_path / "run", host).plan_digest("unrecovered")
    again = ran(tmp_path / "run", host, objective=objective)
    assert again.plan == outcome.plan
    assert again.rows == outcome.rows


def test_the_table_has_no_estimates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fold, "recover", lambda self, context: None)
    host = tiny_host()
    outcome = ran(tmp_path / "run", host, recovery=[FOLD])
    assert not any(result.kept for result in outcome.recovery)
    plain = ran(tmp_path / "plain", host, recovery="none", search={}, searcher={"use": "greedy"})
    assert outcome.plan.plan == plain.plan.plan
    assert outcome.rows == plain.rows
    assert outcome.search[-1].score != plain.search[-1].score


@pytest.mark.parametrize("recovery", ["none", ["exact-first-token"]])
def test_a_recipe_without_a_recovery_that_can_be_estimated_is_refused(recovery: Any) -> None:
    data = {**RECIPE, "recovery": recovery, "search": {"recovered": True}}
    with pytest.raises(RecipeError, match=r"search\.recovered: no recovery of this recipe can be estimated: list fold"):
        Recipe.from_data(data, where="x.toml", host=tiny_host())
