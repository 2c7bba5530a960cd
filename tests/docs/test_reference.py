"""The reference is what the package says, and leaves nothing out."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import pdtrim_core
from pdtrim_core import api, load_plugins, testing
from pdtrim_core.api import hookspecs
from pdtrim_core.api.kinds import KINDS, options_of
from pdtrim_core.recipe.settings import Evaluation, Prune, Settings

if TYPE_CHECKING:
    from types import ModuleType

    from pdtrim_core import PluginHost

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference"
FOREIGN = '''
from pdtrim_core.api import SimilarityScorer, hookimpl

class Foreign(SimilarityScorer):
    """Comes from elsewhere."""
    name = "foreign-one"
    def similarity(self, before, after):
        return (before - after).sum(dim=-1)

@hookimpl
def pdtrim_scorers():
    yield Foreign
'''


@pytest.fixture
def generate(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "docs")
    spec = importlib.util.spec_from_file_location("pdtrim_docs_generate", ROOT / "docs" / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def test_the_generated_pages_are_up_to_date() -> None:
    script = [sys.executable, str(ROOT / "docs" / "generate.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_page_that_differs_or_is_left_over_is_named(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generate, "FOLDER", tmp_path)
    (tmp_path / "same.md").write_text(f"{generate.MARK}\nsame\n")
    (tmp_path / "old.md").write_text(f"{generate.MARK}\nold\n")
    (tmp_path / "by-hand.md").write_text("# By hand\n")
    made = {"same.md": f"{generate.MARK}\nsame\n", "new.md": "new"}
    assert generate.differences(made) == ["new.md", "old.md"]


def test_other_peoples_components_stay_out(generate: Any, tmp_path: Path) -> None:
    file = tmp_path / "foreign.py"
    file.write_text(FOREIGN)
    host = load_plugins([file])
    assert host.find("scorer", "foreign-one")
    assert "foreign-one" not in generate.kind_page("scorer", host)
    assert "foreign-one" not in generate.readme((ROOT / "README.md").read_text(), host)


def test_every_hook_is_in_the_reference() -> None:
    names = [name for name in vars(hookspecs) if name.startswith("pdtrim_")]
    assert names
    assert [name for name in names if f"### {name}\n" not in _page("hooks.md")] == []


@pytest.mark.parametrize("kind", KINDS)
def test_every_component_and_option_of_a_kind_is_in_the_reference(kind: str, host: PluginHost) -> None:
    page = _page(f"{kind}.md")
    provided = [p.component for p in host.of_kind(kind) if p.origin.source == "pdtrim-core"]
    for component in provided:
        section = page.partition(f"## {component.name}\n")[2].partition("\n## ")[0]
        assert section, component.name
        assert [name for name, _ in options_of(component) if f"| `{name}` |" not in section] == []
    assert f"`{kind}`" in _page("recipe.md")


@pytest.mark.parametrize("table", [Settings, Prune, Evaluation])
def test_every_key_of_a_recipe_is_in_the_reference(table: Any) -> None:
    keys = [key for key in table.model_fields if f"`{key}`" not in _page("recipe.md") and f"`[{key}]`" not in _page("recipe.md")]
    assert keys == []


def test_every_command_and_flag_is_in_the_reference() -> None:
    from typer.main import get_command

    from pdtrim_core.cli import app

    commands: dict[str, Any] = getattr(get_command(app), "commands")  # noqa: B009 - typer's own class of a group
    for name, command in commands.items():
        section = _page("command-line.md").partition(f"## {name}\n")[2].partition("\n## ")[0]
        told = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
        flags = [flag for parameter in told for flag in parameter.opts if flag.startswith("--")]
        assert [flag for flag in flags if flag not in section] == []
        assert "Example: pdtrim-core" in section


def test_every_public_name_is_in_the_reference() -> None:
    for page, module in (("python-api.md", pdtrim_core), ("plugin-api.md", api)):
        assert [name for name in module.__all__ if f"\n## {name}\n" not in _page(page)] == []
    kit = _page("plugin-api.md").partition("\n## pdtrim_core.testing\n")[2]
    assert [name for name in testing.__all__ if f"| `{name}` |" not in kit or f"| `{name}` |  |" in kit] == []


def test_the_hand_written_pages_know_every_file_and_field() -> None:
    from pdtrim_core import Drop, Plan, Removal, SavedPlan
    from pdtrim_core.data.readings import Reading
    from pdtrim_core.results.run_folder import OWN_FILES, UNCOMPARED

    folder = _page("run-folder.md")
    assert [name for name in (*OWN_FILES, *UNCOMPARED, *Reading.__dataclass_fields__) if f"`{name}`" not in folder] == []
    saved = SavedPlan(Plan(decode=Removal([Drop(0)])), "m", "f", 2).to_json()
    data = json.loads(saved)
    fields = [*(key for key in data if key != "model"), *(f"model.{key}" for key in data["model"]), *data["kv_map"][0]]
    page = _page("plan-json.md")
    assert [field for field in fields if f"`{field}`" not in page and f'"{field}"' not in page] == []


RESULT = {
    "columns": ["decode"],
    "settings": ["prune.blocks"],
    "machine": "Here",
    "threads": 1,
    "versions": {"pdtrim-core": "1.0", "torch": "2.0+cpu"},
    "rows": [
        {
            "run": "blocks=1",
            "name": "",
            "settings": {"prune.blocks": 1},
            "state": "done",
            "decode": ["3"],
            "block_scores": [0.25, 1500.0],
            "seconds": {"search": 3.0},
        }
    ],
}


def test_tables_of_results_are_made_from_their_files(generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("generator.measured.RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(RESULT))
    page = "Before\n\n<!-- results: mine -->\nold\n<!-- end of results -->\n\nAfter\n"
    made = generate.results(page)
    table = "| blocks | decode loses |\n| --- | --- |\n| 1 | 3 |"
    where = "pdtrim-core 1.0, torch 2.0, Here, 1 thread: 3 s in all."
    assert made == f"Before\n\n<!-- results: mine -->\n\n{table}\n\n{where}\n\n<!-- end of results -->\n\nAfter\n"
    assert generate.results(made) == made


def test_scores_alone_stand_one_block_a_row(generate: Any) -> None:
    del generate
    table = importlib.import_module("generator.measured").results_table({**RESULT, "columns": ["scores"]}).split("\n\n")[0]
    assert table == "| block | 1 |\n| --- | --- |\n| 0 | 0.25 |\n| 1 | 1500 |"


def _kl(value: float, **more: float) -> dict[str, float]:
    return {"kl": value, "error": 0.01, **more}


FORMATS: dict[str, Any] = {
    "benchmark": "formats",
    "at_bytes": [
        {"gone": 0, "format": "W4A16", "decode_bytes": 100_000_000, "text": _kl(0.5), "answers": _kl(0.4)},
        {"gone": 14, "format": "W8A16", "decode_bytes": 101_000_000, "text": _kl(1.0), "answers": _kl(1.2)},
        {"gone": 2, "format": "none", "decode_bytes": 200_000_000, "text": _kl(0.1), "answers": _kl(0.1)},
    ],
    "damage": [
        {
            "change": "W8A8",
            "decode": {"text": _kl(0.02)},
            "prefill": {"text": _kl(0.01)},
            "ratio": {"text": {"ratio": 2.0, "error": 0.125}},
        }
    ],
    "orders": [
        {"way": "fold, quantise", "text": _kl(0.6, beyond=0.0, beyond_error=0.0)},
        {"way": "nearer", "text": _kl(0.5, beyond=-0.1, beyond_error=0.01)},
        {"way": "farther", "text": _kl(0.7, beyond=0.1, beyond_error=0.01)},
        {"way": "as near", "text": _kl(0.59, beyond=-0.01, beyond_error=0.01)},
    ],
}

FARTHER = "W8A16 with 14 blocks gone is 2.0 to 3.0 times as far from the dense model as W4A16 with 0 blocks gone."


@pytest.mark.parametrize(
    ("part", "lines"),
    [
        (
            "at-bytes",
            [
                "| W8A16 | 14 | 101.0 MB | 1.2000 +- 0.0100 | 1.0000 +- 0.0100 |",
                f"- 100 and 101 MB: {FARTHER}",
            ],
        ),
        ("damage", ["| W8A8 | text | 0.0200 +- 0.0100 | 0.0100 +- 0.0100 | 2.00 +- 0.12 |"]),
        (
            "orders",
            [
                "| nearer | 0.5000 +- 0.0100 (-0.1000 +- 0.0100) |",
                "- `nearer` against `fold, quantise`: nearer on text.",
                "- `farther` against `fold, quantise`: farther on text.",
                "- `as near` against `fold, quantise`: no difference that is larger than twice its error.",
            ],
        ),
    ],
)
def test_a_file_with_several_tables_gives_the_one_that_is_named(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str, lines: list[str]
) -> None:
    monkeypatch.setattr("generator.measured.RESULTS", tmp_path)
    (tmp_path / "mine.json").write_text(json.dumps(FORMATS))
    made = generate.results(f"<!-- results: mine {part} -->\nold\n<!-- end of results -->\n")
    assert made.startswith(f"<!-- results: mine {part} -->\n\n| ")
    assert [line for line in lines if line not in made.splitlines()] == []
    assert sum(line.startswith("- ") for line in made.splitlines()) == sum(line.startswith("- ") for line in lines)
    assert generate.results(made) == made


def test_every_file_of_results_is_shown_and_names_no_machine() -> None:
    pages = [(ROOT / "docs" / "explanation" / name).read_text(encoding="utf-8") for name in ("paper.md", "kv-selection.md")]
    files = sorted((ROOT / "docs" / "results").glob("*.json"))
    of_benchmarks = {file.stem for file in (ROOT / "benchmarks" / "results").glob("*.json")}
    assert {file.stem for file in files} == set(re.findall(r"<!-- results: (.*?) -->", "".join(pages))) - of_benchmarks
    for file in files:
        text = file.read_bytes().decode("ascii")
        assert not re.search(r"/(work|root|home|tmp|usr|opt|mnt)/", text)
        assert {row["state"] for row in json.loads(text)["rows"]} == {"done"}
