"""Sweeps: every way to write a table of settings, the names of runs, and all problems of all runs at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from pdtrim_core import PluginError, PluginHost, RecipeError
from pdtrim_core.recipe.toml_data import parse_settings
from pdtrim_core.sweeping.sweep import Changes, Sweep, base_recipe, is_sweep, read_sweep

ROOT = Path(__file__).parents[3]
PAPER = sorted(path for path in (ROOT / "examples" / "paper").rglob("*.toml") if path.stem.startswith(("table", "figure")))
RECIPE = 'recipe = 1\n[model]\npath = "package:none"\n[prune]\nblocks = 1\n'
HEAD = 'sweep = 1\nrecipe = "base.toml"\n'


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.toml").write_text(RECIPE)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "mine.toml"
    path.write_text(text)
    return path


def swept(folder: Path, host: PluginHost, text: str, *settings: str, **changes: Any) -> Sweep:
    return read_sweep(written(folder, HEAD + text), host, Changes(parse_settings(settings), **changes))


def names(sweep: Sweep) -> list[str]:
    return [run.point.name for run in sweep.runs]


def problems_of(folder: Path, host: PluginHost, text: str, *settings: str, head: str = HEAD, **changes: Any) -> list[str]:
    path = written(folder, head + text)
    with pytest.raises(RecipeError) as caught:
        read_sweep(path, host, Changes(parse_settings(settings), **changes), need_data=True)
    assert caught.value.where == str(path)
    return list(caught.value.problems)


GRIDS = ["[grid]\nsearcher.t0 = [5, 10]\n", '[grid]\n"searcher.t0" = [5, 10]\n', "[grid.searcher]\nt0 = [5, 10]\n"]


@pytest.mark.parametrize("grid", GRIDS)
def test_a_key_may_be_nested_dotted_or_quoted(folder: Path, host: PluginHost, grid: str) -> None:
    sweep = swept(folder, host, grid)
    assert names(sweep) == ["t0=5", "t0=10"]
    assert [run.recipe.to_data()["searcher"]["t0"] for run in sweep.runs] == [5, 10]
    assert (sweep.keys, sweep.runs[0].point.settings) == (("searcher.t0",), {"searcher.t0": 5})


def test_a_grid_gives_every_combination_the_last_key_fastest(folder: Path, host: PluginHost) -> None:
    sweep = swept(folder, host, "[grid]\nprune.blocks = [1, 2]\nseed = [0, 1]\n")
    assert names(sweep) == ["blocks=1,seed=0", "blocks=1,seed=1", "blocks=2,seed=0", "blocks=2,seed=1"]


def test_runs_are_taken_as_they_stand(folder: Path, host: PluginHost) -> None:
    text = '[[runs]]\nname = "quick"\nset.searcher = { t0 = 5, t_min = 1 }\n[[runs]]\nset = { seed = 3 }\n'
    sweep = swept(folder, host, text)
    assert names(sweep) == ["quick", "seed=3"]
    assert sweep.runs[0].recipe.to_data()["searcher"]["t_min"] == 1
    assert sweep.keys == ("seed",)  # the name stands for the other settings


def test_each_run_goes_through_the_whole_grid(folder: Path, host: PluginHost) -> None:
    text = '[[runs]]\nname = "a"\nset.scorer = "dot"\n[[runs]]\nset.scorer = "euclidean"\n[grid]\nseed = [0, 1]\n'
    sweep = swept(folder, host, text)
    assert names(sweep) == ["a,seed=0", "a,seed=1", "scorer=euclidean,seed=0", "scorer=euclidean,seed=1"]


def test_a_table_with_use_names_a_component_anew_and_any_other_changes_some_options(folder: Path, host: PluginHost) -> None:
    (folder / "base.toml").write_text(RECIPE + "[searcher]\nt0 = 7\nalpha = 0.5\n")
    text = '[[runs]]\nname = "same"\nset.searcher = { t0 = 5 }\n'
    text += '[[runs]]\nname = "anew"\nset.searcher = { use = "annealing", t0 = 5 }\n'
    searchers = [run.recipe.to_data()["searcher"] for run in swept(folder, host, text).runs]
    assert [(searcher["t0"], searcher["alpha"]) for searcher in searchers] == [(5, 0.5), (5, 0.85)]


def test_a_grid_may_vary_an_option_of_what_a_run_names_anew(folder: Path, host: PluginHost) -> None:
    text = '[[runs]]\nname = "a"\nset.searcher = { use = "random", tries = 9 }\n[grid]\nsearcher.tries = [1, 2]\n'
    assert [run.recipe.to_data()["searcher"]["tries"] for run in swept(folder, host, text).runs] == [1, 2]


def test_what_all_runs_have_stands_in_set_and_the_command_line_comes_after_it(folder: Path, host: PluginHost) -> None:
    text = "[set]\nprune.blocks = 4\ncalibration.samples = 8\n[grid]\nseed = [0, 1]\n"
    runs = swept(folder, host, text, "prune.blocks=2").runs
    assert [(run.recipe.settings.prune.blocks, run.recipe.calibration.samples) for run in runs] == [(2, 8), (2, 8)]


def test_a_recipe_may_stand_in_the_sweep(folder: Path, host: PluginHost) -> None:
    text = 'sweep = 1\n[recipe]\nmodel.path = "package:none"\nprune.blocks = 1\n[grid]\nseed = [0]\n'
    assert names(read_sweep(written(folder, text), host)) == ["seed=0"]


def test_every_run_has_a_folder_of_its_own_under_that_of_the_sweep(folder: Path, host: PluginHost) -> None:
    grid = "[grid]\nseed = [0, 1]\n"
    assert [run.recipe.out for run in swept(folder, host, grid).runs] == [Path("runs/mine/seed=0"), Path("runs/mine/seed=1")]
    assert swept(folder, host, f'out = "there"\n{grid}').runs[0].recipe.out == Path("there/seed=0")
    assert swept(folder, host, f'out = "there"\n{grid}', out=Path("here")).runs[0].recipe.out == Path("here/seed=0")


@pytest.mark.parametrize(
    ("grid", "expected"),
    [
        ("prune.merge_threshold = [0.95, { quantile = 0.9 }]", ["merge_threshold=0.95", "merge_threshold=quantile-0.9"]),
        ('searcher = ["greedy", { use = "random", tries = 3 }]', ["searcher=greedy", "searcher=random"]),
        ("evaluation.early_stop = [true, false]", ["early_stop=true", "early_stop=false"]),
        ('model.path = ["org/A model"]', ["path=org-A-model"]),
        ('report = [["table"], []]', ["report=table", "report=none"]),
        ("searcher.t0 = [5]\nprune.blocks = [1]", ["t0=5,blocks=1"]),
        ('searcher.use = ["annealing"]\nsplitter.use = ["gain"]', ["searcher.use=annealing,splitter.use=gain"]),
    ],
)
def test_names_are_made_from_the_settings(folder: Path, host: PluginHost, grid: str, expected: list[str]) -> None:
    assert names(swept(folder, host, f"[grid]\n{grid}\n")) == expected


def test_a_folder_with_data_is_put_in_wherever_the_sweep_or_its_recipe_asks(folder: Path, host: PluginHost) -> None:
    files = '"${data}/a.jsonl"'
    (folder / "base.toml").write_text(f'{RECIPE}[calibration]\nuse = "jsonl"\nfiles = [{files}]\n')
    grid = f'[grid]\ncalibration.files = [[{files}], ["${{data}}/b.jsonl"]]\n'
    runs = swept(folder, host, grid, data=folder).runs
    assert [run.recipe.to_data()["calibration"]["files"] for run in runs] == [[f"{folder}/a.jsonl"], [f"{folder}/b.jsonl"]]
    assert runs[0].point.settings == {"calibration.files": ["${data}/a.jsonl"]}
    assert problems_of(folder, host, grid) == ["calibration: ${data} stands for a folder with data: name it with --data DIR"]
    assert problems_of(folder, host, grid, data=Path("nowhere")) == ["--data: there is no folder nowhere"]


def test_problems_of_all_runs_are_told_at_once_and_common_ones_once(folder: Path, host: PluginHost) -> None:
    text = "[set]\nsearcher.t9 = 1\n[grid]\nprune.blocks = [-1, 2]\nseed = [0, 1, 2, -3]\n"
    of_blocks = "in blocks=-1,seed=0; blocks=-1,seed=1; blocks=-1,seed=2 and 1 more"
    assert problems_of(folder, host, text) == [
        f"prune.blocks: must be greater than or equal to 0 (got -1) ({of_blocks})",
        "searcher.t9: unknown key; there are alpha, t0, t_min",
        "seed: must be greater than or equal to 0 (got -3) (in blocks=-1,seed=-3; blocks=2,seed=-3)",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ["nothing varies: give [grid], [[runs]] or both"]),
        ("[grid]\nseed = 1\n", ["grid.seed: must be a list of values (got 1)"]),
        ("[grid]\nseed = []\n", ["grid.seed: an empty list gives no runs"]),
        ('[grid]\nsearcher.t0 = [1]\n"searcher.t0" = [2]\n', ["grid.searcher.t0: is given twice"]),
        ('[grid]\nsearcher = ["random"]\n"searcher.t0" = [2]\n', ["grid.searcher.t0: is given twice"]),
        ('[grid]\n"searcher..t0" = [1]\n', ["grid.searcher..t0: is no key of a recipe"]),
        ('[grid]\nout = ["a"]\n', ["grid.out: a run of a sweep cannot set this; the sweep or its recipe can"]),
        (
            '[set]\nplugins = ["a.py"]\n[grid]\nseed = [1]\n',
            ["set.plugins: a run of a sweep cannot set this; the sweep or its recipe can"],
        ),
        ("[[runs]]\nset.seed = 1\n[grid]\nseed = [1]\n", ["runs.0.set.seed: is in [grid] too"]),
        ('[[runs]]\nset.searcher.t0 = 1\n[grid]\nsearcher = ["random"]\n', ["runs.0.set.searcher.t0: is in [grid] too"]),
        ("[[runs]]\nset.seed = 1\n[[runs]]\nset.seed = 1\n", ["runs: two runs are called 'seed=1': give each a name of its own"]),
        ("[[runs]]\n", ["runs: '' is no name for a folder: give a name of letters, digits and . _ = , + -"]),
        ('[[runs]]\nname = "../a"\n', ["runs: '../a' is no name for a folder: give a name of letters, digits and . _ = , + -"]),
        ('[[runs]]\nnam = "a"\n', ["runs.0.nam: unknown key"]),
        ("[[runs]]\nset = 3\n", ["runs.0.set: must be an object (got 3)"]),
        ("[gird]\nseed = [1]\n", ["gird: unknown key; did you mean 'grid'?"]),
        ('columns = ["stagd"]\n[grid]\nseed = [1]\n', ["columns: there is no column 'stagd'; did you mean 'staged'?"]),
        (f"[grid]\nseed = {list(range(40))}\nprune.blocks = {list(range(40))}\n", ["grid: these are 1600 runs, more than 1000"]),
    ],
)
def test_what_is_wrong_with_a_sweep_is_named(folder: Path, host: PluginHost, text: str, expected: list[str]) -> None:
    assert problems_of(folder, host, text) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [
        ("sweep = 2\nrecipe = 'base.toml'\n", "sweep: must be less than or equal to 1 (got 2)"),
        ("sweep = 1\n", "recipe: required key is missing"),
        ("sweep = 1\nrecipe = 3\n", "recipe: must be the path of a recipe, or a table (got 3)"),
        ("sweep = 1\nrecipe = ''\n", "recipe: must be the path of a recipe, or a table (got '')"),
    ],
)
def test_a_sweep_needs_a_recipe_and_a_format(folder: Path, host: PluginHost, head: str, expected: str) -> None:
    assert problems_of(folder, host, "[grid]\nseed = [1]\n", head=head) == [expected]


def test_a_recipe_that_is_not_there_is_named_with_its_own_path(folder: Path, host: PluginHost) -> None:
    path = written(folder, "sweep = 1\nrecipe = 'sub/none.toml'\n[grid]\nseed = [1]\n")
    with pytest.raises(RecipeError) as caught:
        read_sweep(path, host)
    assert str(caught.value) == f"{folder}/sub/none.toml: 1 problem\n  no such file"


def test_a_sweep_is_no_recipe_for_another(folder: Path, host: PluginHost) -> None:
    (folder / "base.toml").write_text(HEAD)
    assert problems_of(folder, host, "[grid]\nseed = [1]\n") == [f"recipe: {folder}/base.toml is a sweep itself: name a recipe"]


@pytest.mark.parametrize(
    ("setting", "problem"),
    [
        ("seed=3", "--set seed: the runs of this sweep differ in it"),
        ("searcher.use=random", "--set searcher.use: the runs of this sweep differ in it"),
        ("out=here", "--set out: a run of a sweep cannot set this; --out names the folder of the sweep"),
    ],
)
def test_the_command_line_cannot_set_what_varies(folder: Path, host: PluginHost, setting: str, problem: str) -> None:
    text = '[grid]\nseed = [0, 1]\nsearcher = ["random", "greedy"]\n'
    assert problems_of(folder, host, text, setting) == [problem]


def test_a_sweep_loads_the_plugins_that_its_recipe_names(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "base.toml").write_text('plugins = ["mine.py"]\n' + RECIPE)
    (folder / "sub" / "mine.py").write_text(
        "from pdtrim_core.api import Searcher, hookimpl\n\n"
        "class Mine(Searcher):\n"
        '    """Nothing."""\n\n'
        '    name = "mine"\n\n'
        "    def search(self, space, rng):\n"
        "        yield from ()\n\n"
        "@hookimpl\n"
        "def pdtrim_searchers():\n"
        "    yield Mine\n"
    )
    sweep = read_sweep(written(folder, 'sweep = 1\nrecipe = "sub/base.toml"\n[grid]\nsearcher = ["mine", "greedy"]\n'))
    assert [run.recipe.searcher.name for run in sweep.runs] == ["mine", "greedy"]
    assert all(run.recipe.host is sweep.host for run in sweep.runs)
    (folder / "sub" / "base.toml").write_text(RECIPE)
    file = written(folder, 'sweep = 1\nrecipe = "sub/base.toml"\n[grid]\nsearcher = ["mine", "greedy"]\n')
    again = read_sweep(file, changes=Changes({"plugins": ["mine.py"]}))
    assert [run.recipe.searcher.name for run in again.runs] == ["mine", "greedy"]
    with pytest.raises(PluginError, match=r"none.py does not exist"):
        read_sweep(file, changes=Changes({"plugins": ["none.py"]}))


def test_plugins_of_the_recipe_are_found_beside_it(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "base.toml").write_text('plugins = ["mine.py"]\n')
    data = {"sweep": 1, "recipe": "sub/base.toml"}
    assert base_recipe(data, folder / "s.toml")["plugins"] == [str(folder / "sub" / "mine.py")]
    inline = {"sweep": 1, "recipe": {"plugins": ["mine.py"]}}
    assert base_recipe(inline, folder / "s.toml")["plugins"] == [str(folder / "mine.py")]


def test_a_sweep_is_told_from_a_recipe_by_its_first_key() -> None:
    assert (is_sweep({"sweep": 1}), is_sweep({"recipe": 1})) == (True, False)


@pytest.mark.parametrize("path", PAPER, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_the_sweeps_of_the_paper_can_be_carried_out(path: Path, host: PluginHost, tmp_path: Path) -> None:
    sweep = read_sweep(path, host, Changes(data=tmp_path), need_data=True)
    assert sweep.runs
    assert "${data}" not in tomli_w.dumps(sweep.runs[0].recipe.to_data())


def test_each_table_and_figure_comes_in_both_sizes() -> None:
    sizes = [{path.name for path in PAPER if path.parent.name == name} for name in ("paper", "small")]
    tables = {f"table{n}.toml" for n in (1, 2, *range(5, 17))}
    assert sizes[0] == sizes[1] == {*tables, "figure2.toml", "figure3.toml"}


def test_a_run_may_leave_out_what_the_recipe_says(folder: Path, host: PluginHost) -> None:
    (folder / "base.toml").write_text(RECIPE + "merges = true\n[searcher]\nuse = 'annealing'\nt0 = 5.0\n")
    text = (
        '[[runs]]\nname = "as-it-is"\n[[runs]]\nunset = ["searcher.t0"]\n'
        '[[runs]]\nname = "other"\nunset = ["prune.merges"]\nset = { searcher = { use = "greedy" } }\n'
        '[[runs]]\nname = "pruner"\nunset = ["searcher", "prune.merges"]\nset = { pruner = "shortgpt" }\n'
    )
    sweep = swept(folder, host, text)
    assert names(sweep) == ["as-it-is", "no-searcher.t0", "other", "pruner"]
    data = {run.point.name: run.recipe.to_data() for run in sweep.runs}
    assert [data[name]["searcher"]["t0"] for name in ("as-it-is", "no-searcher.t0")] == [5.0, 15.0]
    assert (data["as-it-is"]["prune"]["merges"], data["other"]["prune"]["merges"]) == (True, False)
    assert data["pruner"]["pruner"]["use"] == "shortgpt"


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('[[runs]]\nname = "a"\nunset = ["seed"]\n', "unset seed: the recipe of run 'a' does not say it"),
        ('[[runs]]\nname = "a"\nunset = ["model.path.x"]\n', "unset model.path.x: the recipe of run 'a' does not say it"),
        ('[[runs]]\nname = "a"\nunset = ["scorer"]\nset.scorer = "dot"\n', "runs.0.unset.scorer: is set there too"),
        ('[[runs]]\nname = "a"\nunset = ["seed"]\n[grid]\nseed = [1, 2]\n', "runs.0.unset.seed: is set there too"),
    ],
)
def test_what_cannot_be_left_out_is_told(folder: Path, host: PluginHost, text: str, problem: str) -> None:
    assert any(found.startswith(problem) for found in problems_of(folder, host, text))
