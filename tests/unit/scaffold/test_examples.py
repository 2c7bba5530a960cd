"""The example packages: as short as they say, light to import, and one code wherever it is shown."""

from __future__ import annotations

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import tomli

from pdtrim_core import Recipe, load_plugins
from pdtrim_core.api.kinds import KINDS
from pdtrim_core.testing import KvSelectorContract, RecoveryContract

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
PLUGINS = [
    *(f"pdtrim_core.scaffold.templates.{kind}" for kind in KINDS),
    "pdtrim_norm",
    "pdtrim_depth_and_width",
]


def test_the_scorer_is_twelve_lines_and_the_plain_file_is_the_same() -> None:
    code = (EXAMPLES / "third_party_scorer" / "pdtrim_norm.py").read_text()
    assert len(code.splitlines()) == 12
    assert (EXAMPLES / "plain_file" / "my_scorer.py").read_text() == code
    assert f"```python\n{code}```" in (ROOT / "README.md").read_text()
    assert f"```toml\n{(EXAMPLES / 'plain_file' / 'own.toml').read_text()}```" in (ROOT / "README.md").read_text()


RECOVERY = EXAMPLES / "plain_file" / "my_recovery.py"


class TestRecoveryOfAPlainFile(RecoveryContract):
    component = runpy.run_path(str(RECOVERY))["Rescale"]


def test_the_recovery_of_a_plain_file_is_short_and_its_recipe_finds_it() -> None:
    assert len(RECOVERY.read_text().splitlines()) <= 21
    recipe = Recipe.read(EXAMPLES / "plain_file" / "recovered.toml", host=load_plugins([RECOVERY]))
    assert [recovery.name for recovery in recipe.recoveries] == ["rescale"]


SELECTOR = EXAMPLES / "plain_file" / "my_selector.py"


class TestSelectorOfAPlainFile(KvSelectorContract):
    component = runpy.run_path(str(SELECTOR))["WorstHead"]


def test_the_selector_of_a_plain_file_is_short_and_its_recipe_finds_it() -> None:
    assert len(SELECTOR.read_text().splitlines()) <= 15
    recipe = Recipe.read(EXAMPLES / "plain_file" / "selected.toml", host=load_plugins([SELECTOR]))
    assert recipe.kv_selector is not None
    assert recipe.kv_selector.name == "worst-head"


@pytest.mark.parametrize("folder", ["third_party_scorer", "third_party_pruner"])
def test_a_package_has_all_that_it_needs(folder: str) -> None:
    data = tomli.loads((EXAMPLES / folder / "pyproject.toml").read_text())
    assert data["project"]["dependencies"] == ["pdtrim-core"]
    assert (EXAMPLES / folder / data["project"]["readme"]).is_file()
    assert data["project"]["entry-points"]["pdtrim"]
    (test,) = (EXAMPLES / folder / "tests").glob("test_*.py")
    assert len([line for line in test.read_text().splitlines() if line and "import" not in line]) == 2


def test_plugins_are_imported_without_torch() -> None:
    path = [str(EXAMPLES / "third_party_scorer"), str(EXAMPLES / "third_party_pruner" / "src")]
    code = f"import sys; sys.path += {path!r}\nfor name in {PLUGINS!r}: __import__(name); assert 'torch' not in sys.modules, name"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_notebook_is_one_for_jupytext() -> None:
    text = (EXAMPLES / "python_api.py").read_text()
    assert text.startswith("# ---\n# jupyter:\n#   jupytext:\n")
    assert text.count("\n# %%\n") >= 8
    assert text.count("\n# %% [markdown]\n") >= 6


@pytest.mark.model
def test_the_notebook_sized_example_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", str(EXAMPLES / "python_api.py")],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "decode   ########## ###..##.## #####..###" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("right ")
