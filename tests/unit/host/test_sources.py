"""The code of a component: its hash changes with what may change what it does, and with nothing else."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from pdtrim_core.host.host import load_plugins
from pdtrim_core.host.sources import changes, digest_of_class, digest_of_file, engine
from pdtrim_plugins.objectives import Accuracy
from pdtrim_plugins.scorers import Cosine

PLUGIN = """
from pdtrim_core.api import Scorer, hookimpl
import {module}

class Own(Scorer):
    name = "own"

    def score(self, context):
        from {lazy} import number
        return number

@hookimpl
def pdtrim_scorers():
    yield Own
"""


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A plugin file that imports a module and, when it is called, a package, which imports another module."""
    beside = tmp_path / "beside"
    (beside / "late_pdtrim_test").mkdir(parents=True)
    (beside / "early_pdtrim_test.py").write_text("number = 1\n")
    (beside / "late_pdtrim_test" / "__init__.py").write_text("import third_pdtrim_test\nnumber = 1\n")
    (beside / "late_pdtrim_test" / "inner.py").write_text("number = 1\n")
    (beside / "third_pdtrim_test.py").write_text("import late_pdtrim_test\nnumber = 1\n")
    (beside / "unused_pdtrim_test.py").write_text("number = 1\n")
    monkeypatch.syspath_prepend(beside)
    for name in ("early", "late", "third"):
        monkeypatch.delitem(sys.modules, f"{name}_pdtrim_test", raising=False)
    file = tmp_path / "own.py"
    file.write_text(PLUGIN.format(module="early_pdtrim_test", lazy="late_pdtrim_test"))
    return file


def source_of(file: Path, *, anew: bool = True) -> str:
    """Return the code of the scorer in a plugin file; `anew` as in a process that has loaded nothing of it yet."""
    for name in [name for name in sys.modules if name.endswith("_pdtrim_test") and anew]:
        del sys.modules[name]
    host = load_plugins([file])
    return host.source_of(host.find("scorer", "own").component())


EDITED = ["beside/early_pdtrim_test.py", "beside/late_pdtrim_test/__init__.py", "beside/late_pdtrim_test/inner.py"]


@pytest.mark.parametrize("edited", ["own.py", *EDITED, "beside/third_pdtrim_test.py"])
def test_the_code_of_a_plugin_file_is_all_that_it_imports_from_files_that_are_not_installed(plugin: Path, edited: str) -> None:
    before = source_of(plugin)
    assert source_of(plugin) == before
    (plugin.parent / edited).write_text((plugin.parent / edited).read_text() + "# edited\n")
    assert source_of(plugin) != before


def test_what_a_plugin_file_does_not_import_is_no_part_of_it(plugin: Path) -> None:
    before = source_of(plugin)
    (plugin.parent / "beside" / "unused_pdtrim_test.py").write_text("number = 2\n")
    (plugin.parent / "beside" / "other.txt").write_text("x")
    assert source_of(plugin) == before


def test_a_chain_of_imports_may_be_as_long_as_it_likes(plugin: Path) -> None:
    """As in a package of a thousand files that import each other, such as a source tree on PYTHONPATH."""
    beside, count = plugin.parent / "beside", 2 * sys.getrecursionlimit()
    for number in range(count):
        (beside / f"link{number}_pdtrim_test.py").write_text(f"def late(): import link{number + 1}_pdtrim_test\n")
    (beside / f"link{count}_pdtrim_test.py").write_text("end = 1\n")
    (beside / "third_pdtrim_test.py").write_text("import link0_pdtrim_test\n")
    before = source_of(plugin)
    (beside / f"link{count}_pdtrim_test.py").write_text("end = 2\n")
    assert source_of(plugin) != before


def test_what_lies_beside_distributions_is_theirs(plugin: Path) -> None:
    (plugin.parent / "beside" / "late-1.0.dist-info").mkdir()
    before = source_of(plugin)
    (plugin.parent / "beside" / "late_pdtrim_test" / "inner.py").write_text("number = 2\n")
    assert source_of(plugin) == before


def test_code_that_is_loaded_already_keeps_its_hash_when_its_file_is_edited(plugin: Path) -> None:
    before = source_of(plugin)
    (plugin.parent / "beside" / "early_pdtrim_test.py").write_text("number = 2\n")
    assert source_of(plugin, anew=False) == before
    assert source_of(plugin) != before


WAYS = {
    "a path of its own": "import sys; sys.path.insert(0, {folder!r})\nimport hidden_pdtrim_test\n",
    "a file by its place": (
        "import importlib.util as u\nfile = {folder!r} + '/hidden_pdtrim_test.py'\n"
        "spec = u.spec_from_file_location('hidden_pdtrim_test', file)\n"
        "other = u.module_from_spec(spec)\nspec.loader.exec_module(other)\n"
    ),
    "a folder without __init__": "import sys; sys.path.insert(0, {above!r})\nimport hidden_folder.hidden_pdtrim_test\n",
}


@pytest.mark.parametrize("way", WAYS)
def test_helpers_that_are_found_in_other_ways_count_too(way: str, plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plugin.parent / "hidden_folder"
    folder.mkdir()
    (folder / "hidden_pdtrim_test.py").write_text("number = 1\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    plugin.write_text(WAYS[way].format(folder=str(folder), above=str(plugin.parent)) + plugin.read_text())
    before = source_of(plugin)
    (folder / "hidden_pdtrim_test.py").write_text("number = 2\n")
    for name in [name for name in sys.modules if name.startswith("hidden_")]:
        monkeypatch.delitem(sys.modules, name)
    assert source_of(plugin) != before


def test_the_place_of_a_plugin_file_is_no_part_of_its_code(plugin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = source_of(plugin)
    monkeypatch.chdir(plugin.parent)
    assert source_of(Path("own.py")) == before
    copied = plugin.parent / "elsewhere" / "own.py"
    copied.parent.mkdir()
    copied.write_text(plugin.read_text())
    assert source_of(copied) == before


def test_two_files_of_one_name_are_two_modules(plugin: Path) -> None:
    other = plugin.parent / "other" / "own.py"
    other.parent.mkdir()
    other.write_text(plugin.read_text().replace("return number", "return 5"))
    hosts = [load_plugins([file]) for file in (plugin, other)]
    classes = [host.find("scorer", "own").component for host in hosts]
    assert len({cls.__module__ for cls in classes}) == 2
    assert all(sys.modules[cls.__module__].Own is cls for cls in classes)


def test_a_file_that_is_no_python_has_a_hash_too() -> None:
    module = ModuleType("pdtrim_file_own")
    hashes = {digest_of_file(module, content) for content in (b"(", b"\x00", b"import nothing_of_the_kind", b"")}
    assert len(hashes) == 4


def test_a_component_of_a_distribution_has_its_version_and_the_code_of_its_package() -> None:
    host = load_plugins()
    assert host.source_of(Cosine()).rsplit(" ", 1)[0] == str(host.find("scorer", "cosine").origin)
    assert host.source_of(Cosine()) == host.source_of(Accuracy())


def test_a_class_that_another_one_derives_from_is_part_of_its_code(plugin: Path) -> None:
    host = load_plugins([plugin])
    base = host.find("scorer", "own").component
    derived = type("Derived", (base,), {"__module__": "tests.unit.host.test_sources"})
    other = type("Derived", (Cosine,), {"__module__": "tests.unit.host.test_sources"})
    assert digest_of_class(derived) != digest_of_class(other)


def made_in_a_notebook(number: int, **more: Any) -> type[Cosine]:
    space: dict[str, Any] = {"Cosine": Cosine, "__name__": "a_notebook"}
    exec(f"class Own(Cosine):\n    name = 'own'\n    def score(self, context):\n        return [x * {number} for x in ()]", space)
    for name, value in more.items():
        setattr(space["Own"], name, value)
    found: type[Cosine] = space["Own"]
    return found


def test_a_class_without_a_file_is_known_by_its_instructions() -> None:
    assert digest_of_class(made_in_a_notebook(2)) == digest_of_class(made_in_a_notebook(2))
    assert digest_of_class(made_in_a_notebook(2)) != digest_of_class(made_in_a_notebook(3))
    assert digest_of_class(made_in_a_notebook(2)) != digest_of_class(made_in_a_notebook(2, cites="other"))


def test_a_component_that_no_host_has_has_code() -> None:
    host = load_plugins()
    assert host.source_of(made_in_a_notebook(2)()).startswith("a_notebook ")


def test_the_engine_is_named_with_its_versions() -> None:
    found = engine()
    assert list(found) == ["pdtrim-core", "torch", "transformers"]
    assert len(found["pdtrim-core"].split()) == 2


def test_a_change_is_told_by_what_changed() -> None:
    before = {"torch": "2.12.0", "objective 'own'": "own.py 1111", "distiller 'mse'": "pdtrim-core 0.1 2222", "scorer 'x'": "a 1"}
    now = {"torch": "2.13.0", "objective 'own'": "own.py 3333", "distiller 'mse'": "pdtrim-core 0.2 4444", "pruner 'y'": "b 1"}
    assert changes(before, now) == [
        "torch is 2.13.0, was 2.12.0",
        "the code of objective 'own' (own.py) has changed",
        "distiller 'mse' is pdtrim-core 0.2 4444, was pdtrim-core 0.1 2222",
        "pruner 'y' is b 1, was unknown",
    ]
    assert changes(now, now) == []
