"""`pdtrim-core check` says what exporters and serve could not take, before anything is computed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pdtrim_core.testing.models import save_tiny_model

if TYPE_CHECKING:
    from tests.e2e.conftest import Cli

pytestmark = pytest.mark.e2e
PREFILL = ("--set", "evaluation.first_token=prefill")


def test_what_the_recipe_exports_is_checked_unasked(cli: Cli, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '\n[[exporter]]\nuse = "vllm"\n')
    assert cli("check", recipe).out == f"{recipe}: ok\n"
    done = cli("check", recipe, *PREFILL)
    assert done.code == 2
    assert done.out.startswith(
        f"{recipe}: 1 problem\n  exporter 'vllm': with first_token = \"prefill\" something else is measured"
    )
    done = cli("run", recipe, *PREFILL)
    assert done.code == 2
    assert "exporter 'vllm': with first_token" in done.err


def test_others_are_asked_by_name_and_all_answer_at_once(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    model = save_tiny_model(tmp_path / "opt", "opt")
    assert cli("check", recipe, "--for", "serve", "--for", "checkpoints").out == f"{recipe}: ok\n"
    done = cli("check", recipe, "--for", "serve", "--for", "gguf", "--set", f"model.path={model}", *PREFILL, "--json")
    assert done.code == 2
    (result,) = json.loads(done.out)
    assert [problem.split(":")[0] for problem in result["problems"]] == ["exporter 'vllm'", "exporter 'vllm'", "exporter 'gguf'"]


def test_a_name_that_there_is_not_is_told(cli: Cli, recipe: Path) -> None:
    done = cli("check", recipe, "--for", "gguff")
    assert done.code == 2
    assert "there is no exporter 'gguff'; did you mean 'gguf'?" in done.out


def test_a_model_that_is_elsewhere_is_an_error_only_for_those_who_ask(cli: Cli, recipe: Path) -> None:
    recipe.write_text(recipe.read_text() + '\n[[exporter]]\nuse = "checkpoints"\n')
    elsewhere = ("--set", "model.path=package:nowhere")
    done = cli("check", recipe, *elsewhere)
    assert done.code == 0
    assert done.out.startswith(f"{recipe}: ok; whether it can be exported is not known: ")
    assert "package:nowhere" in done.out
    done = cli("check", recipe, *elsewhere, "--for", "gguf")
    assert done.code == 1
    assert "package:nowhere" in done.out


def test_the_runs_of_a_sweep_are_named(cli: Cli, recipe: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.toml"
    sweep.write_text(f'sweep = 1\nrecipe = "{recipe.name}"\n[grid]\nevaluation.first_token = ["decode", "prefill"]\n')
    done = cli("check", sweep, "--for", "vllm")
    assert done.code == 2
    assert ": 1 problem\n" in done.out
    assert "prefill: exporter 'vllm': with first_token" in done.out


def test_a_recipe_whose_exporters_need_nothing_is_checked_without_torch(recipe: Path) -> None:
    code = (
        "import sys\nfrom pdtrim_core.cli import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, "check", recipe], capture_output=True, text=True, check=True)
    assert done.stdout == f"{recipe}: ok\n[]\n"
