"""Listings start without torch, from anywhere, whatever else is installed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
PROBE = """
import sys
from pdtrim_core.cli import main
sys.argv = ["pdtrim-core", *sys.argv[1:]]
try:
    main()
except SystemExit as end:
    code = end.code
heavy = {"torch", "transformers", "accelerate", "gguf", "safetensors", "matplotlib", "jinja2"} & set(sys.modules)
print("HEAVY", sorted(heavy), file=sys.stderr)
sys.exit(code)
"""
RECIPE = 'model = "package:none"\nprune = {blocks = 1}\n'


@pytest.mark.parametrize(
    "words",
    [
        ("plugins",),
        ("plugins", "--json"),
        ("describe", "annealing"),
        ("describe", "scorer", "cosine"),
        ("schema",),
        ("runs",),
        ("cache",),
        ("new", "pruner", "mine"),
        ("check", "r.toml"),
        ("run", "r.toml", "--dry-run"),
        ("--help",),
        ("run", "--help"),
        ("report", "--help"),
        ("bench", "--help"),
        ("compare", "--help"),
        ("eval", "--help"),
        ("serve", "--help"),
        ("--version",),
    ],
    ids=" ".join,
)
def test_listings_start_without_torch(words: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(RECIPE)
    done = subprocess.run([sys.executable, "-c", PROBE, *words], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "HEAVY []\n")
    assert done.stdout.strip()
    assert done.stdout.isascii()


def test_the_commands_of_servers_are_printed_without_torch(tmp_path: Path) -> None:
    plan = {"plan_hash": "ab" * 32, "first_token": "decode", "model": {"name": "tiny"}}
    files = {"serve/plan.json": plan, "serve/prefill.json": {}, "serve/decode.json": {}}
    for stage in ("prefill", "decode"):
        files[f"{stage}/config.json"] = {"pdtrim": {"plan_hash": "ab" * 32}}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(json.dumps(content))
    words = [sys.executable, "-c", PROBE, "serve", ".", "--dry-run", "--cpu"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "HEAVY []\n")
    assert len(done.stdout.splitlines()) == 3


def test_output_into_a_pipe_that_closes_is_no_error(tmp_path: Path) -> None:
    program = Path(sys.executable).with_name("pdtrim-core")
    done = subprocess.run(f"{program} schema | head -1", shell=True, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{\n", "")
