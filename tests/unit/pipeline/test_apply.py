"""A plan on a model that is already loaded: the stages of a run, on weights that the user opened."""

from __future__ import annotations

import copy
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import pdtrim_core
from pdtrim_core import Drop, Merge, PdtrimError, Plan, PlanError, Recipe, RecipeError, Removal, SavedPlan, apply, load_run, run
from pdtrim_core.api import Item, Sample, encode
from pdtrim_core.execution.prefix_cache import ExecutionOptions, PrefixCache
from pdtrim_core.execution.stage_modules import as_stage, steps_of
from pdtrim_core.execution.staged_model import StagedModel
from pdtrim_core.model.weights import save_modules
from pdtrim_core.pipeline.apply import ModelPair
from pdtrim_core.testing import FAMILIES, ByteTokenizer, tiny_llama, tiny_model, tiny_transformers
from pdtrim_core.testing.contracts.small_run import TINY, tiny_host
from tests.unit.recovered_runs import UNIFIED, recovered_run

PROMPT = list(b"A prompt of some length")
DATA: dict[str, Any] = {
    "model": TINY,
    "recovery": "none",
    "prune": {"blocks": 2},
    "calibration": {"samples": 8, "held_out": 4},
    "searcher": "greedy",
    "evaluation": {"threads": 1, "fidelity": False},
}


def recipe(out: Path, **changes: Any) -> Recipe:
    return Recipe.from_data(
        DATA, changes={key.replace("__", "."): value for key, value in changes.items()}, out=out, host=tiny_host()
    )


@pytest.mark.numeric
def test_the_dense_plan_generates_what_transformers_generates() -> None:
    model = tiny_transformers("llama")
    staged = apply(Plan(), model)
    with torch.inference_mode():
        expected = model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=0)[
            0, len(PROMPT) :
        ].tolist()
    assert staged.generate(PROMPT, 8) == expected


@pytest.mark.numeric
def test_dropping_a_silent_block_from_a_loaded_model_changes_nothing() -> None:
    model = tiny_llama(silent={2}).model
    items = [encode(Sample("Ice is", (" cold", " hot")), ByteTokenizer())]
    dense, pruned = apply(Plan(), model), apply(Plan.unified(Removal([Drop(2)])), model)
    assert pruned.loglikelihoods(items) == dense.loglikelihoods(items)
    assert pruned.generate(PROMPT, 8) == dense.generate(PROMPT, 8)


@pytest.mark.numeric
@pytest.mark.parametrize("family", FAMILIES)
def test_a_silent_block_is_the_identity_in_every_family(family: str) -> None:
    model = tiny_model(family, silent={2})
    items = [encode(Sample("Ice is", (" cold", " hot")), ByteTokenizer())]
    dense, pruned = (apply(Plan.unified(Removal(lost)), model).loglikelihoods(items) for lost in ([], [Drop(2)]))
    assert pruned == dense
    assert apply(Plan.unified(Removal([Drop(3)])), model).loglikelihoods(items) != dense


@pytest.mark.numeric
def test_the_model_itself_answers_as_before() -> None:
    model = tiny_transformers("llama")
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        before = model(ids).logits
        apply(Plan.unified(Removal([Drop(2)])), model).generate(PROMPT, 4)
        assert torch.equal(model(ids).logits, before)


@pytest.mark.numeric
def test_a_finished_run_is_applied_by_its_folder_its_plan_file_or_itself(tmp_path: Path) -> None:
    outcome = run(recipe(tmp_path / "run"))
    model = tiny_transformers("llama")
    plans: list[Any] = [
        tmp_path / "run",
        str(tmp_path / "run" / "plan.json"),
        load_run(tmp_path / "run", tiny_host()),
        outcome.plan,
    ]
    staged = [apply(plan, model) for plan in plans]
    assert {one.plan for one in staged} == {outcome.plan.plan}
    assert len({tuple(one.generate(PROMPT, 6)) for one in staged}) == 1


@pytest.mark.numeric
def test_merged_blocks_come_from_beside_the_plan(tmp_path: Path) -> None:
    dense = tiny_llama()
    merge = Merge(keep=3, drop=2)
    module = copy.deepcopy(dense.blocks[3])
    with torch.no_grad():
        module.get_parameter("mlp.down_proj.weight").mul_(0.5)
    plan = Plan.unified(Removal([merge]))
    save_modules(plan, {merge: module}, tmp_path / "merges")
    (tmp_path / "plan.json").write_text(SavedPlan(plan, "tiny", dense.fingerprint, 6).to_json())
    items = [encode(Sample("Ice is", (" cold", " hot")), ByteTokenizer())]
    given = apply(plan, dense, modules={merge: module}).loglikelihoods(items)
    assert given != apply(plan, dense, modules={merge: dense.blocks[3]}).loglikelihoods(items)
    for path in (tmp_path, tmp_path / "plan.json"):
        assert apply(path, tiny_transformers("llama")).loglikelihoods(items) == given
    with pytest.raises(PdtrimError, match="but no merged block was given for it"):
        apply(plan, dense)


@pytest.mark.numeric
@pytest.mark.parametrize("family", ["llama", "qwen2", "opt"])
def test_a_recovered_run_is_applied_with_its_recovered_weights(family: str, tmp_path: Path) -> None:
    opened = recovered_run(tmp_path / "run", f"tiny:{family}", exporter=["plan"])
    saved, model = opened.outcome.plan, tiny_transformers(family)
    cache = PrefixCache(opened.dense, ExecutionOptions(batch_tokens=64))
    measured, plain = StagedModel(cache, saved.plan, opened.modules), StagedModel(cache, saved.plan)
    items = [encode(Sample("Ice is", (" cold", " hot")), ByteTokenizer())]
    ways: list[ModelPair] = [
        *(apply(way, model) for way in (opened.path, str(opened.path / "plan.json"), opened)),
        apply(saved, model, modules=opened.modules),
        apply(saved.plan, model, modules=opened.modules),
    ]
    answers = [way.generate(PROMPT, 8) for way in ways]
    assert answers == [answers[0]] * len(ways)
    # What the two phases make is what one pass holds to be the likeliest, token by token.
    ((scored,),) = measured.scores([Item((tuple(PROMPT),), (tuple(answers[0]),), 0, (1,))])
    assert scored.greedy
    expected = measured.loglikelihoods(items)
    assert expected != plain.loglikelihoods(items)
    for way in ways:
        assert way.loglikelihoods(items)[0] == pytest.approx(expected[0], abs=1e-4)
    assert apply(saved.plan, model).loglikelihoods(items)[0] == pytest.approx(plain.loglikelihoods(items)[0], abs=1e-4)


def test_a_recovered_plan_without_its_weights_is_refused(tmp_path: Path) -> None:
    opened = recovered_run(tmp_path / "run", exporter=["plan"])
    model = tiny_transformers("llama")
    merges = {Merge(3, 2): model.model.layers[3]}
    ways: list[tuple[Any, Any]] = [(opened.outcome.plan, None), (opened.outcome.plan, merges), (opened.path, merges)]
    for way, modules in ways:
        with pytest.raises(PdtrimError) as caught:
            apply(way, model, modules=modules)
        assert str(caught.value) == (
            "this plan has recovered weights, which lie in the folder of its run: apply that folder, and give no modules"
        )
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(opened.path / "plan.json", alone)
    missing = f"the plan has recovered weights, and they are not in {alone / 'recovered'}: name the folder of its run, or run the"
    with pytest.raises(PdtrimError, match=re.escape(missing)):
        apply(alone / "plan.json", model)
    path = opened.path / "recovered" / "decode.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    for way in (opened.path, opened.path / "plan.json", load_run(opened.path, tiny_host())):
        with pytest.raises(PdtrimError, match="has not the weights that the plan was recovered with: run the recipe again"):
            apply(way, model)


@pytest.mark.numeric
def test_a_recovered_unified_plan_generates_what_its_one_model_generates(tmp_path: Path) -> None:
    opened = recovered_run(tmp_path / "run", **UNIFIED)
    plan, dense = opened.outcome.plan.plan, opened.dense
    assert plan.prefill == plan.decode
    with torch.inference_mode(), as_stage(dense, steps_of(dense, plan, "decode", opened.modules)):
        whole = dense.model.generate(torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, pad_token_id=0)
    assert apply(opened.path, tiny_transformers("llama")).generate(PROMPT, 8) == whole[0, len(PROMPT) :].tolist()


def test_a_plan_for_other_weights_is_refused(tmp_path: Path) -> None:
    run(recipe(tmp_path / "run"))
    with pytest.raises(PlanError, match=r"this plan was made for tiny:llama \(\w{12}\), but \w+ has other weights"):
        apply(tmp_path / "run", tiny_transformers("llama", seed=1))


def test_what_is_no_plan_is_refused() -> None:
    with pytest.raises(PdtrimError, match="apply takes a plan, a run or the path of one, not Removal"):
        apply(Removal(), tiny_llama())  # type: ignore[arg-type]


def test_a_model_that_no_plugin_knows_is_refused() -> None:
    model = SimpleNamespace(config=SimpleNamespace(model_type="odd"), name_or_path="me/odd")
    with pytest.raises(PdtrimError, match="me/odd: no plugin knows where the architecture 'odd' keeps its blocks"):
        apply(Plan(), model)


# Recipes from Python


def test_a_recipe_of_data_is_the_one_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        'model = "tiny:llama"\nsearcher = "greedy"\nrecovery = "none"\n'
        "prune.blocks = 2\ncalibration = {samples = 8, held_out = 4}\n"
    )
    read = Recipe.read(file, changes={"evaluation": {"threads": 1, "fidelity": False}, "out": "elsewhere"}, host=tiny_host())
    made = Recipe.from_data({**DATA, "out": "elsewhere"}, host=tiny_host())
    assert read.to_data() == made.to_data()
    assert read.out == Path("elsewhere")
    assert Recipe.read(str(file), out=tmp_path / "r", host=tiny_host()).out == tmp_path / "r"


def test_changes_reach_into_tables_and_options(tmp_path: Path) -> None:
    made = recipe(tmp_path, searcher="annealing", searcher__t0=5.0)
    assert made.to_data()["searcher"] == {**made.to_data()["searcher"], "use": "annealing", "t0": 5.0}
    assert DATA["searcher"] == "greedy"


def test_all_problems_of_a_recipe_of_data_are_told() -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data({"model": "package:none", "recovery": "none", "prune": {"block": 1}, "seed": -1})
    assert str(caught.value).splitlines() == [
        "recipe: 3 problems",
        "  seed: must be greater than or equal to 0 (got -1)",
        "  prune.block: unknown key; did you mean 'blocks'?",
        "  prune.blocks: required key is missing (or give prune.fraction)",
    ]


@pytest.mark.numeric
def test_a_run_uses_the_plugins_that_its_recipe_was_made_with(tmp_path: Path) -> None:
    (tmp_path / "flat.py").write_text(
        "from pdtrim_core.api import Scorer, Scores, hookimpl\n\n"
        "class Flat(Scorer):\n"
        '    """All blocks alike."""\n'
        '    name = "flat"\n'
        "    def score(self, context):\n"
        "        return Scores((0.0,) * context.block_count)\n\n"
        "@hookimpl\n"
        "def pdtrim_scorers():\n"
        "    yield Flat\n"
    )
    from pdtrim_core.testing.models import save_tiny_model

    data = {**DATA, "model": str(save_tiny_model(tmp_path / "model")), "plugins": ["flat.py"], "scorer": "flat"}
    made = Recipe.from_data(data, where=str(tmp_path / "mine.toml"), out=tmp_path / "run")
    assert run(made).block_scores == (0.0,) * 6
    assert json.loads((tmp_path / "run" / "scores.json").read_text())["block"] == [0.0] * 6
    assert load_run(tmp_path / "run", trust=True).recipe.scorer.name == "flat"


def test_the_names_of_the_python_api_are_public() -> None:
    assert {"Recipe", "run", "load_run", "apply"} <= set(pdtrim_core.__all__)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("gpt2", "not the name of one: AutoModelForCausalLM.from_pretrained('gpt2') loads it"),
        (Path("some/folder"), "not the name of one: AutoModelForCausalLM.from_pretrained('some/folder') loads it"),
        (None, "not NoneType"),
        (SimpleNamespace(config=None), "not SimpleNamespace"),
    ],
)
def test_what_is_no_loaded_model_is_told_how_to_load_it(model: Any, told: str) -> None:
    for plan in ("no/run", Plan()):
        with pytest.raises(PdtrimError) as caught:
            apply(plan, model)
        assert str(caught.value) == f"apply takes a transformers model that is already loaded, {told}"


def test_the_first_token_that_is_given_counts_before_that_of_the_plan() -> None:
    model = tiny_model("llama")
    plan = Plan()
    saved = SavedPlan(plan, model.name, model.fingerprint, model.block_count, "prefill")
    assert apply(saved, model).staged._prefix_cache.first_token == "prefill"
    assert apply(saved, model, first_token="decode").staged._prefix_cache.first_token == "decode"
    assert apply(plan, model).staged._prefix_cache.first_token == "decode"
