"""Exporters are made from names and options, write under one folder, and are lent what they read of a run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import pytest
from pydantic import Field

from pdtrim_core.api import BlockModel, Exporter, Outcome, PdtrimError, PluginError, RecipeError
from pdtrim_core.api.hookspecs import hookimpl
from pdtrim_core.host.host import Origin, PluginHost
from pdtrim_core.pipeline.export import LENT, lent, make_exporters, write_exports
from pdtrim_core.testing.contracts import small_run


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
