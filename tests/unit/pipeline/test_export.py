"""Exporters are made from names and options, write under one folder, and are lent what they read of a run."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import Field

from pdtrim_core.api import BlockModel, Exporter, ExportFacts, Outcome, PdtrimError, PluginError, RecipeError
from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.host.host import Origin, PluginHost
from pdtrim_core.pipeline.export import LENT, export_problems, facts_of, lent, make_exporters, write_exports
from pdtrim_core.pipeline.pipeline import run as carry_out
from pdtrim_core.recipe.recipe import Recipe
from pdtrim_core.testing.contracts.small_run import TinyModel, small_run, tiny_host


class Notice(Exporter):
    """A file that names the model."""

    name = "notice"

    file: str = Field("notice.txt", description="name of the file")
    loud: bool = Field(default=False, description="whether it shouts")

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        path = out / self.file
        path.write_text(outcome.model.upper() if self.loud else outcome.model)
        yield path


class Count(Exporter):
    """A file that counts the blocks."""

    name = "count"

    file: str = Field("count.txt", description="name of the file")
    base: int = Field(10, gt=1, description="base of the number")

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        if self.base != 10:
            raise ValueError(f"no numbers in base {self.base}")
        path = out / self.file
        path.write_text(str(model.block_count))
        return [path]


@pytest.fixture
def two() -> PluginHost:
    """A host that has these two exporters alone."""
    host = PluginHost()
    writers: list[type[Exporter]] = [Notice, Count]
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: writers)), Origin("writers", "tests"))
    assert host.failures == []
    return host


# Making them


def test_each_exporter_gets_the_options_that_it_has(two: PluginHost) -> None:
    made = make_exporters(["count", "notice"], {"file": "x.txt", "loud": True, "base": 8}, two)
    assert made == (Count(file="x.txt", base=8), Notice(file="x.txt", loud=True))
    assert make_exporters([], {}, two) == ()


@pytest.mark.parametrize(
    ("names", "options", "problem"),
    [
        (["notice"], {"lout": 1}, "--set: 1 problem\n  lout: notice has no such option; did you mean 'loud'?"),
        (
            ["notice", "count"],
            {"x": 1, "lout": 1},
            (
                "--set: 2 problems\n  x: notice, count has no such option; there are base, file, loud\n"
                "  lout: notice, count has no such option; did you mean 'loud'?"
            ),
        ),
        (["notice"], {"base": 8}, "--set: 1 problem\n  base: notice has no such option; there are file, loud"),
        (["notise"], {}, "exporter: 1 problem\n  there is no exporter 'notise'; did you mean 'notice'?"),
    ],
)
def test_names_and_options_that_do_not_exist_are_told(
    two: PluginHost, names: list[str], options: dict[str, object], problem: str
) -> None:
    with pytest.raises(RecipeError) as error:
        make_exporters(names, options, two)
    assert str(error.value) == problem


def test_a_value_that_an_option_does_not_take_is_told(two: PluginHost) -> None:
    with pytest.raises(RecipeError) as error:
        make_exporters(["count"], {"base": 1}, two)
    assert error.value.where == "--to"
    (problem,) = error.value.problems
    assert problem.endswith("base: must be greater than 1 (got 1)")


# Writing


def test_what_was_written_is_told_in_order(two: PluginHost, tmp_path: Path) -> None:
    outcome, model = small_run()
    written = list(write_exports([Count(), Notice()], two, outcome, model, tmp_path))
    assert written == [tmp_path / "count.txt", tmp_path / "notice.txt"]
    assert [path.read_text() for path in written] == ["6", "tiny:llama"]


@pytest.mark.parametrize("way", ["upwards", "absolute", "through a link"])
def test_an_exporter_that_writes_outside_the_folder_is_named(two: PluginHost, tmp_path: Path, way: str) -> None:
    outcome, model = small_run()
    out, beside = tmp_path / "out", tmp_path / "beside"
    out.mkdir()
    beside.mkdir()
    (out / "link").symlink_to(beside, target_is_directory=True)
    file = {"upwards": "../notice.txt", "absolute": str(beside / "notice.txt"), "through a link": "link/notice.txt"}[way]
    exports = write_exports([Count(), Notice(file=file)], two, outcome, model, out)
    assert next(exports) == out / "count.txt"
    with pytest.raises(PluginError) as error:
        next(exports)
    label = two.label_of(Notice())
    assert str(error.value) == f"{label} wrote {out / file}, which is not under {out}"
    assert label.startswith("exporter 'notice'")


def test_an_exporter_that_fails_is_named(two: PluginHost, tmp_path: Path) -> None:
    outcome, model = small_run()
    with pytest.raises(PluginError) as error:
        list(write_exports([Count(base=8)], two, outcome, model, tmp_path))
    assert str(error.value) == f"{two.label_of(Count())} failed: ValueError: no numbers in base 8"


# Asking before


class Picky(Exporter):
    """Writes for decode's first token alone, and only what has six blocks."""

    name = "picky"

    def problems(self, facts: ExportFacts) -> list[str]:
        found = [] if facts.first_token == "decode" else ["decode must make the first token"]
        return found if facts.text_config.num_hidden_layers == 6 else [*found, f"{facts.model} has not six blocks"]

    def export(self, outcome: Outcome, model: BlockModel, out: Path) -> Iterable[Path]:
        self.check(ExportFacts.of_run(outcome, model, out))
        return []


class PickyToo(Picky):
    """Another one."""

    name = "picky-too"


class Broken(Picky):
    """Fails when it is asked."""

    name = "broken"

    def problems(self, facts: ExportFacts) -> list[str]:
        raise ValueError(facts.model)


def tiny_recipe(out: Path, *writers: type[Exporter], **keys: Any) -> Recipe:
    host = tiny_host()
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: writers)), Origin("writers", "tests"))
    data = {
        "model": "tiny:llama",
        "recovery": "none",
        "prune": {"blocks": 1},
        "exporter": [writer.name for writer in writers],
        **keys,
    }
    return Recipe.from_data(data, where="x.toml", out=out, host=host)


def problems(recipe: Recipe, **more: Any) -> list[str]:
    return export_problems(recipe.exporters, recipe.host, facts_of(recipe, **more))


def test_exporters_say_before_a_run_what_they_could_not_write_after_it(tmp_path: Path) -> None:
    assert problems(tiny_recipe(tmp_path, Picky)) == []
    other = tiny_recipe(tmp_path, Picky, PickyToo, evaluation={"first_token": "prefill"})
    assert problems(other) == ["exporter 'picky', 'picky-too': decode must make the first token"]


def test_a_run_says_it_before_it_measures_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdtrim_core.pipeline.run_inputs.draw", lambda *_: pytest.fail("items are drawn"))
    recipe = tiny_recipe(tmp_path / "run", Picky, evaluation={"first_token": "prefill"})
    with pytest.raises(RecipeError) as error:
        carry_out(recipe)
    assert str(error.value) == f"{tmp_path / 'run'}: 1 problem\n  exporter 'picky': decode must make the first token"


def test_an_export_says_the_same(tmp_path: Path) -> None:
    outcome, model = small_run()
    assert list(Picky().export(outcome, model, tmp_path)) == []
    model.config.num_hidden_layers = 7
    saved = replace(outcome.plan, first_token="prefill").to_data()
    with pytest.raises(PdtrimError) as error:
        Picky().export(replace(outcome, saved_plan=saved), model, tmp_path)
    assert str(error.value) == "decode must make the first token; also, tiny:llama has not six blocks"


def test_recipes_with_one_model_open_its_config_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    open_config = TinyModel.open_config

    def count(self: TinyModel) -> Any:
        opened.append(self.path)
        return open_config(self)

    monkeypatch.setattr(TinyModel, "open_config", count)
    configs: dict[str, Any] = {}
    for path in ("tiny:llama", "tiny:llama", "tiny:qwen2"):
        assert problems(tiny_recipe(tmp_path, Picky, PickyToo, model=path), configs=configs) == []
    assert opened == ["tiny:llama", "tiny:qwen2"]
    assert problems(tiny_recipe(tmp_path, Count)) == []
    assert len(opened) == 2


def test_an_exporter_that_fails_when_it_is_asked_is_named(tmp_path: Path) -> None:
    with pytest.raises(PluginError, match=r"^exporter 'broken' .* failed: ValueError: tiny:llama$"):
        problems(tiny_recipe(tmp_path, Broken))


# Lending


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run's folder with a file in each of the folders that exporters read."""
    for name in LENT:
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "file").write_text(name)
    return tmp_path / "run"


def test_what_exporters_read_is_there_while_they_write_and_gone_afterwards(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    with lent(run, out):
        assert [(out / name / "file").read_text() for name in LENT] == list(LENT)
        (out / "written").touch()
    assert [path.name for path in out.iterdir()] == ["written"]
    assert [(run / name / "file").read_text() for name in LENT] == list(LENT)


def test_links_go_also_where_an_exporter_fails(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), lent(run, tmp_path / "out"):
        raise ZeroDivisionError
    assert list((tmp_path / "out").iterdir()) == []


def test_links_that_a_killed_export_left_are_replaced(run: Path, tmp_path: Path) -> None:
    out, another = tmp_path / "out", tmp_path / "another"
    out.mkdir()
    (another / LENT[0]).mkdir(parents=True)
    for name in LENT:
        (out / name).symlink_to(another / name, target_is_directory=True)
    with lent(run, out):
        assert [(out / name / "file").read_text() for name in LENT] == list(LENT)
    assert list(out.iterdir()) == []


def test_a_run_needs_no_loan_of_its_own_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "also").symlink_to(run, target_is_directory=True)
    for out in (run, run / ".." / "run", tmp_path / "also"):
        with lent(run, out):
            assert not any((run / name).is_symlink() for name in LENT)
    assert [(run / name / "file").read_text() for name in LENT] == list(LENT)


@pytest.mark.parametrize("name", LENT)
def test_the_folder_of_another_run_is_refused_and_left_alone(run: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "other"
    (out / name).mkdir(parents=True)
    with pytest.raises(PdtrimError) as error, lent(run, out):
        pytest.fail("nothing is lent")
    assert str(error.value) == f"{out / name} exists, so {out} is the folder of another run: choose another folder with --out"
    assert [path.name for path in out.iterdir()] == [name]


def test_a_folder_that_cannot_be_written_is_told(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    with pytest.raises(PdtrimError) as error, lent(run, out):
        pytest.fail("nothing is lent")
    assert str(error.value) == (
        f"cannot write {out}: Not a directory; what was measured before is kept: mend this and run the same command again"
    )
