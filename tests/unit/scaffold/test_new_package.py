"""New plugin packages: for every kind a whole one, whose tests pass and whose recipe runs as generated."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tomli

from pdtrim_core import PdtrimError, Recipe, RecipeError, load_plugins, run
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.scaffold.new_package import CONTRACTS, files_of, package_of, write_package
from pdtrim_core.testing.contracts import TinyModel


def as_installed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a package on the path as pip would: its module, and what its pyproject.toml says of entry points."""
    project = tomli.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / "src" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    ((name, value),) = project["entry-points"]["pdtrim"].items()
    (info / "entry_points.txt").write_text(f"[pdtrim]\n{name} = {value}\n")
    monkeypatch.syspath_prepend(folder / "src")
    importlib.invalidate_caches()


def test_every_kind_has_a_contract_to_test_by() -> None:
    assert CONTRACTS.keys() == KINDS.keys()


def test_the_tests_of_every_kind_pass_as_generated(tmp_path: Path) -> None:
    folders = []
    for kind in KINDS:
        package = package_of(kind, f"my-{kind.replace('_', '-')}", tmp_path)
        write_package(package)
        folders.append(package.folder)
    path = os.pathsep.join([*(str(folder / "src") for folder in folders), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "error", *map(str, folders)],
        env={**os.environ, "PYTHONPATH": path},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "skipped" not in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_of_every_kind_uses_it_and_runs(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    name = f"own-{kind.replace('_', '-')}"
    package = package_of(kind, name, tmp_path)
    write_package(package)
    as_installed(package.folder, monkeypatch)
    host = load_plugins()
    assert host.failures == []
    tiny: dict[str, Any] = {} if kind == "model" else {"model.path": "./tiny"}
    recipe = Recipe.read(
        package.folder / "recipe.toml",
        out=tmp_path / "run",
        host=host,
        changes={**tiny, "evaluation.threads": 1, "evaluation.fidelity": False},
    )
    if kind != "model":
        # The small model takes seconds to open; any stands for it here.
        object.__setattr__(recipe, "model", TinyModel(path="tiny:llama"))
    made = getattr(recipe, {"recovery": "recoveries", "exporter": "exporters", "report": "reports"}.get(kind, kind))
    names = [part.name for part in made] if isinstance(made, tuple) else [made.name]
    assert name in names
    assert host.find(kind, name).origin.source == f"pdtrim-{name}"
    assert run(recipe).rows[0].name == "dense"


@pytest.mark.parametrize("kind", KINDS)
def test_no_trace_of_the_template_is_left(kind: str, tmp_path: Path) -> None:
    for name, text in files_of(package_of(kind, "norm+ratio-2", tmp_path)).items():
        assert "example" not in (name + text).lower().replace("norm+ratio-2", "")
        assert text.isascii()
        compile(text, name, "exec") if name.endswith(".py") else None


def test_names_become_those_of_python_and_pip(tmp_path: Path) -> None:
    package = package_of("distiller", "mse+cosine", tmp_path)
    assert (package.title, package.module, package.folder.name) == ("MseCosine", "pdtrim_mse_cosine", "pdtrim-mse-cosine")


def test_a_kind_or_a_name_that_cannot_be_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as caught:
        package_of("scorrer", "Norm Ratio", tmp_path)
    assert str(caught.value).splitlines() == [
        "new: 2 problems",
        "  there is no kind 'scorrer'; did you mean 'scorer'?",
        "  'Norm Ratio' cannot be the name of a component: use lower-case words joined by '-', such as norm-ratio",
    ]
    with pytest.raises(RecipeError, match=f"there is no kind 'zzz'; there are {', '.join(KINDS)}"):
        package_of("zzz", "a", tmp_path)


def test_nothing_is_written_over(tmp_path: Path) -> None:
    (tmp_path / "pdtrim-mine").mkdir()
    with pytest.raises(PdtrimError, match="pdtrim-mine exists already: choose another name, or another place with --in"):
        write_package(package_of("scorer", "mine", tmp_path))
    assert list((tmp_path / "pdtrim-mine").iterdir()) == []


def test_a_package_that_cannot_be_written_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, *args: Any, **kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(PdtrimError, match="No space left on device"):
        write_package(package_of("scorer", "mine", tmp_path))
    assert list(tmp_path.iterdir()) == []
